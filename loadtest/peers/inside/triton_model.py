"""Runs inside Triton's Python backend: ONNX Runtime on the batch that Triton formed, in one call."""

import fcntl
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What the backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model beside this file."""
        config = json.loads(args["model_config"])
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = int(config["parameters"]["threads"]["string_value"])
        settings.inter_op_num_threads = 1
        folder = Path(args["model_repository"]) / args["model_version"]
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), settings, providers=["CPUExecutionProvider"]
        )
        self._turn = (folder / "turn").open("w")  # of the instances, which are processes: one executes at a time
        self._input = config["input"][0]["name"]
        self._output = config["output"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One execution for all of them."""
        rows = [pb_utils.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        gathered = rows[0] if len(rows) == 1 else np.concatenate(rows)
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        try:
            (answers,) = self._session.run([self._output], {self._input: gathered})
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)
        responses, at = [], 0
        for each in rows:
            output = pb_utils.Tensor(self._output, answers[at : at + len(each)])
            responses.append(pb_utils.InferenceResponse([output]))
            at += len(each)
        return responses
