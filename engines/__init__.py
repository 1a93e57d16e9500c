"""Running models: tensors, scheduling, pools, backends, repositories. Knows no gRPC, Redis or Prometheus."""

import os

# ONNX Runtime reports to its maker from the moment it is imported, unless this is set before; so it is set before any
# module of ours can import it. Whoever wants it to report sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
