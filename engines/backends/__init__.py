"""Engines of several kinds behind one protocol."""

import os

# ONNX Runtime reports to its maker from the moment it is imported, unless this is set before. Whoever wants it to
# report sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
