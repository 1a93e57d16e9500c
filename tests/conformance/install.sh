#!/usr/bin/env bash
# Builds the conformance tools, at fixed versions, into .tools/bin. Needs Go.
set -euo pipefail
cd "$(dirname "$0")/../.."

H2SPEC=v2.2.1+incompatible
GRPC_GO=v1.85.0
GRPCURL=v1.9.4
HEALTH_PROBE=v0.4.61

export GOBIN="$PWD/.tools/bin"
stamp="$GOBIN/.versions"
wanted="h2spec $H2SPEC grpc-go $GRPC_GO grpcurl $GRPCURL grpc-health-probe $HEALTH_PROBE"
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi
command -v go >/dev/null || { echo "the conformance tools are built with Go, which is not installed" >&2; exit 1; }
go install "github.com/summerwind/h2spec/cmd/h2spec@$H2SPEC"
go install "google.golang.org/grpc/interop/client@$GRPC_GO"
mv "$GOBIN/client" "$GOBIN/grpc-interop-client"
go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$GRPCURL"
go install "github.com/grpc-ecosystem/grpc-health-probe@$HEALTH_PROBE"
echo "$wanted" > "$stamp"
