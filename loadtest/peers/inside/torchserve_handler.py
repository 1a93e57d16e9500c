"""A TorchServe handler around ONNX Runtime: raw tensors in, raw tensors out, one execution for a batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class OnnxHandler:
    """What TorchServe looks for: `initialize`, and `handle` for each batch."""

    def initialize(self, context: Any) -> None:
        """Open the model beside this file."""
        folder = Path(context.system_properties["model_dir"])
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        settings.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), settings, providers=["CPUExecutionProvider"]
        )
        (self._input,) = self._session.get_inputs()
        self._dtype = np.dtype(np.int64 if "int64" in self._input.type else np.float32)
        self._shape = (-1, *self._input.shape[1:])

    def handle(self, data: list[dict[str, bytes]], context: Any) -> list[bytes]:
        """All requests of a batch have one row."""
        del context
        rows = np.frombuffer(b"".join(bytes(each["data"]) for each in data), self._dtype).reshape(self._shape)
        (answers,) = self._session.run(None, {self._input.name: rows})
        return [row.tobytes() for row in answers]
