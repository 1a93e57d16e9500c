"""From an ONNX model to a version that is ready to be served: precision, calibration, and the gate before publishing.

Stands beside the serving path: it uses the backends and the repository's layout, and nothing that serves uses it.
"""
