#!/usr/bin/env bash
# Builds ghz, at a fixed version, into .tools/bin. Needs Go.
set -euo pipefail
cd "$(dirname "$0")/../.."

GHZ=v0.120.0

export GOBIN="$PWD/.tools/bin"
stamp="$GOBIN/.ghz-version"
if [ -x "$GOBIN/ghz" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$GHZ" ]; then
  exit 0
fi
command -v go >/dev/null || { echo "ghz is built with Go, which is not installed" >&2; exit 1; }
go install "github.com/bojand/ghz/cmd/ghz@$GHZ"
echo "$GHZ" > "$stamp"
