#!/usr/bin/env bash
# Measures Kairos on a GPU: tests/gpu/run.sh [onnxruntime|tensorrt|all] [--dry-run]
#
# Wheels that the machine lacks are taken from the folder $WHEELS (.whl by default) without any network; results go to
# $OUT (build/gpu by default). For part tensorrt with an old Python, name its interpreter in $PYTHON.
set -euo pipefail
cd "$(dirname "$0")/../.."

part=${1:-all}
[[ $part == --* ]] && part=all || shift || true
python=${PYTHON:-python3}
out=${OUT:-build/gpu}
wheels=${WHEELS:-.whl}

if compgen -G "$wheels/*.whl" > /dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

for each in onnxruntime tensorrt; do
    if [[ $part == all || $part == "$each" ]]; then
        timeout 560 "$python" -m tests.gpu.older tests.gpu.measure "$each" --out "$out" "$@"
    fi
done
