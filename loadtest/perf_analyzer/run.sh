#!/usr/bin/env bash
# NVIDIA's perf_analyzer on a model: loadtest/perf_analyzer/run.sh HOST:PORT MODEL [any option of perf_analyzer ...]
#   --concurrency-range 1:64:8        callers (a closed loop)
#   --request-rate-range 500          requests a second (an open one; add --request-distribution poisson)
#   --streaming                       ModelStreamInfer
#   --shared-memory system            tensors by shared memory
#
# The wheel that is called perf-analyzer is empty. The binary is inside tritonclient 2.43.0's, the last one to carry it,
# and wants two libraries that come with Triton's own wheel: make peers, or python -m loadtest.peers --peers
# triton-python --only-install, puts them there.
set -euo pipefail
cd "$(dirname "$0")/../.."

address=${1:?host:port}
model=${2:?model}
shift 2
home=.tools/perf_analyzer
if [ ! -x $home/perf_analyzer ]; then
  libraries=$(echo .tools/peers/triton/lib/python3*/site-packages/nvidia_pytriton.libs)
  [ -d "$libraries" ] || { echo "first: .venv/bin/python -m loadtest.peers --peers triton-python --only-install" >&2; exit 1; }
  mkdir -p $home/libs
  .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $home tritonclient==2.43.0
  .venv/bin/python -m zipfile -e $home/tritonclient-2.43.0-*.whl $home/wheel
  ln -sf "$PWD/$(echo "$libraries"/libb64-*.so.0d)" $home/libs/libb64.so.0d
  ln -sf "$PWD/$(echo "$libraries"/libcudart-*.so.12*)" $home/libs/libcudart.so.12
  mv $home/wheel/tritonclient-2.43.0.data/data/bin/perf_analyzer $home/
  rm -r $home/wheel $home/*.whl
  chmod +x $home/perf_analyzer
fi
LD_LIBRARY_PATH=$home/libs exec $home/perf_analyzer -i grpc -u "$address" -m "$model" "$@"
