"""Builds TensorRT plans from ONNX files, on the machine that they will run on."""
