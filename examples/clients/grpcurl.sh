#!/usr/bin/env bash
# Talks to the server from a shell: grpcurl learns the protocol from the server itself, through reflection.
#
#   examples/clients/grpcurl.sh --url 127.0.0.1:8001
set -euo pipefail

url=127.0.0.1:8001
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit ;;
    --url) url=${2:?--url needs host:port}; shift 2 ;;
    --url=*) url=${1#--url=}; shift ;;
    *) echo "unknown argument: $1 (see --help)" >&2; exit 2 ;;
  esac
done

if ! command -v grpcurl > /dev/null; then
  echo "grpcurl is not installed; see https://github.com/fullstorydev/grpcurl#installation" >&2
  exit 127
fi

call() { # the method, then the request as JSON; prints the command before its answer
  echo
  echo "\$ grpcurl -plaintext -d '$2' $url inference.GRPCInferenceService/$1"
  grpcurl -plaintext -max-time 10 -d "$2" "$url" "inference.GRPCInferenceService/$1"
}

echo "\$ grpcurl -plaintext $url list"
grpcurl -plaintext -max-time 10 "$url" list

call ServerReady '{}'
call ModelMetadata '{"name": "text"}'
# Typed contents, so that a person can write them; JSON carries bytes in base64. Replies are always raw.
call ModelInfer '{"model_name": "text", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1],
  "contents": {"bytes_contents": ["'"$(printf 'How ARE you?' | base64)"'"]}}], "outputs": [{"name": "words"}]}'
echo
echo "AwAAAAAAAAA= is base64 for a little-endian INT64: 3 words."
