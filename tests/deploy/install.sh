#!/usr/bin/env bash
# Builds helm and actionlint, and fetches the schemas of others' resources, at fixed versions, into .tools. Needs Go.
set -euo pipefail
cd "$(dirname "$0")/../.."

HELM=v3.22.0
ACTIONLINT=v1.7.12
KEDA=v2.21.0
PROMETHEUS_OPERATOR=v0.85.0
KSERVE=0.21.0

export GOBIN="$PWD/.tools/bin"
crds="$PWD/.tools/crds"
stamp="$crds/.versions"
wanted="helm $HELM actionlint $ACTIONLINT keda $KEDA prometheus-operator $PROMETHEUS_OPERATOR kserve $KSERVE"
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi
command -v go >/dev/null || { echo "helm and actionlint are built with Go, which is not installed" >&2; exit 1; }
mkdir -p "$GOBIN" "$crds"
go install "helm.sh/helm/v3/cmd/helm@$HELM"
go install "github.com/rhysd/actionlint/cmd/actionlint@$ACTIONLINT"

# The definitions are part of the modules; KServe's types are part of its Python package.
folder() { (cd "$crds" && GOFLAGS=-mod=mod go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'); }
install -m 644 "$(folder "github.com/kedacore/keda/v2@$KEDA")/config/crd/bases/keda.sh_scaledobjects.yaml" "$crds"
operator=$(folder "github.com/prometheus-operator/prometheus-operator@$PROMETHEUS_OPERATOR")
install -m 644 "$operator/example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml" "$crds"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$crds" "kserve==$KSERVE"
echo "$wanted" > "$stamp"
