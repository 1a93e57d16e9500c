"""Run by MLflow's own interpreter: logs and registers ONNX models as its users do. The argument is the server."""

import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import mlflow.onnx
import numpy as np
import onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from onnx import TensorProto, helper, numpy_helper


def scale(factor: float) -> onnx.ModelProto:
    """`y = x * factor + bias`, with a bias large enough for MLflow to keep it in a file beside the graph."""
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1000]) for name in ("x", "y")]
    nodes = [helper.make_node("Mul", ["x", "factor"], ["z"]), helper.make_node("Add", ["z", "bias"], ["y"])]
    weights = [
        numpy_helper.from_array(np.array([factor], np.float32), "factor"),
        numpy_helper.from_array(np.zeros(1000, np.float32), "bias"),
    ]
    graph = helper.make_graph(nodes, "scale", rows[:1], rows[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def signature(dtype: str) -> ModelSignature:
    """What is said of `scale`, rightly or not."""
    return ModelSignature(
        Schema([TensorSpec(np.dtype(dtype), (-1, 1000), "x")]),
        Schema([TensorSpec(np.dtype("float32"), (-1, 1000), "y")]),
    )


def wait_for(url: str) -> None:
    """Until the server is up."""
    for _ in range(2400):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit("the MLflow server does not start")


wait_for(sys.argv[1])
mlflow.set_tracking_uri(sys.argv[1])
config = Path("config.pbtxt")
config.write_text("instance_group { count: 1 kind: KIND_CPU }\n")
with mlflow.start_run():
    for name, factor, dtype in (("scale", 2.0, "float32"), ("scale", 3.0, "float32"), ("liar", 2.0, "float64")):
        mlflow.onnx.log_model(
            scale(factor),
            name=name,
            registered_model_name=name,
            signature=signature(dtype),
            extra_files=[str(config)],
            pip_requirements=["onnx"],
        )
mlflow.MlflowClient().set_registered_model_alias("scale", "champion", "1")
