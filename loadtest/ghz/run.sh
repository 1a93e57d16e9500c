#!/usr/bin/env bash
# Load from ghz on the digit classifier of the examples: loadtest/ghz/run.sh unary|stream [any option of ghz ...]
#   -z 5s       for so long             -c 64        callers
#   -t 50ms     each call's deadline    -r 2000 --async   an open loop: so many a second, whatever becomes of them
#   -O html -o report.html              any format that ghz knows
# Where another server is meant: --host HOST:PORT
set -euo pipefail
cd "$(dirname "$0")/../.."

kind=${1:?unary or stream}
shift
ghz=$(PATH="$PWD/.tools/bin:$PATH" command -v ghz) || { echo "ghz is missing: loadtest/ghz/install.sh builds it" >&2; exit 1; }
config=loadtest/ghz/$kind.json
if [ "${1:-}" = --host ]; then
  # ghz takes its target as an argument, and what is in the file wins over it
  changed=$(mktemp --suffix=.json)
  trap 'rm -f "$changed"' EXIT
  sed "s|127.0.0.1:8001|$2|" "$config" > "$changed"
  config=$changed
  shift 2
fi
"$ghz" --config "$config" "$@"
