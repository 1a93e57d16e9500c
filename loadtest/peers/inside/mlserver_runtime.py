"""An MLServer runtime around ONNX Runtime; MLServer gathers the batch and scatters the answers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):
    """One session with one thread of its own, so that the event loop stays free."""

    async def load(self) -> bool:
        """Open the model that the settings name."""
        extra = self.settings.parameters.extra
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(extra["threads"])
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self._threads = ThreadPoolExecutor(1)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One execution."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        run = asyncio.get_running_loop().run_in_executor
        (answers,) = await run(self._threads, self._session.run, [self._output], {self._input: rows})
        output = NumpyCodec.encode_output(self._output, answers)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
