"""Sessions as ONNX Runtime's with CUDA, that compute on the processor in a fake GPU's memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from engines.backends.cuda.fake import FakeDevice


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, tuple[int, tuple[int, ...], int]] = {}
        self.outputs: dict[str, tuple[int, tuple[int, ...], int] | None] = {}
        self.values: list[Any] = []

    def bind_input(self, name: str, kind: str, device: int, element: int, shape: tuple[int, ...], address: int) -> None:
        assert kind == "cuda"
        self.inputs[name] = (element, tuple(shape), address)

    def bind_output(
        self,
        name: str,
        kind: str = "cpu",
        device: int = 0,
        element: int | None = None,
        shape: tuple[int, ...] | None = None,
        address: int | None = None,
    ) -> None:
        assert kind == "cuda"
        self.outputs[name] = None if address is None else (int(element or 0), tuple(shape or ()), address)

    def get_outputs(self) -> list[Any]:
        return self.values


class Session:
    """As onnxruntime.InferenceSession with CUDA: it queues on the stream that it was made with."""

    def __init__(self, path: Path, device: FakeDevice, stream: int) -> None:
        self.graph_ids: list[str] = []
        self.error: Exception | None = None
        self._inner = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._device = device
        self._stream = stream
        self._made: list[int] = []

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: ort.RunOptions) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        try:
            self.graph_ids.append(options.get_run_config_entry("gpu_graph_id"))
        except RuntimeError:  # not asked for
            self.graph_ids.append("")
        if self.error is not None:
            raise self.error
        device, names = self._device, list(binding.outputs)
        late = {name: device.allocate(4096) for name, place in binding.outputs.items() if place is None}
        self._made += late.values()
        binding.values = [None] * len(names)

        def run() -> None:
            feeds = {}
            for name, (element, shape, address) in binding.inputs.items():
                dtype = onnx.helper.tensor_dtype_to_np_dtype(element)
                size = int(np.prod(shape)) * dtype.itemsize
                feeds[name] = device.view(address, size).view(dtype).reshape(shape).copy()
            for number, (name, array) in enumerate(zip(names, self._inner.run(names, feeds), strict=True)):
                place = binding.outputs[name]
                address = late[name] if place is None else place[2]
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                device.view(address, data.size)[:] = data
                where, shape = address, array.shape
                binding.values[number] = SimpleNamespace(
                    data_ptr=lambda where=where: where, shape=lambda shape=shape: list(shape)
                )

        device.run(self._stream, run)
