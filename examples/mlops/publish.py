"""Run by MLflow's own interpreter: logs and registers versions of `digits`, as a training pipeline would.

The argument is the server. Each line of standard input is a folder with `model.onnx`, its baseline, `config.pbtxt` and
`labels.txt`; each line of standard output the number of the version that it became.
"""

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

SIGNATURE = ModelSignature(
    Schema([TensorSpec(np.dtype("float32"), (-1, 1, 8, 8), "image")]),
    Schema([TensorSpec(np.dtype("float32"), (-1, 10), name) for name in ("logits", "probabilities")]),
)


def wait_for(url: str) -> None:
    """Until the server is up."""
    for _ in range(1200):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit("the MLflow server does not start")


def publish(folder: Path) -> str:
    """Log what is in the folder, and register it: the version."""
    client = mlflow.MlflowClient()
    with mlflow.start_run():
        logged = mlflow.onnx.log_model(
            onnx.load(folder / "model.onnx"),
            name="digits",
            signature=SIGNATURE,
            extra_files=[str(folder / "config.pbtxt"), str(folder / "labels.txt")],
            pip_requirements=["onnx"],
            save_as_external_data=False,
        )
    for baseline in sorted(folder.glob("baseline.*")):
        client.log_model_artifact(logged.model_id, str(baseline))  # beside the graph, and so beside it in Kairos
    return str(mlflow.register_model(f"models:/{logged.model_id}", "digits").version)


wait_for(sys.argv[1])
mlflow.set_tracking_uri(sys.argv[1])
answers, sys.stdout = sys.stdout, sys.stderr  # whatever MLflow prints
for line in sys.stdin:
    print(publish(Path(line.strip())), file=answers, flush=True)
