"""The GPU that is measured, or fakes in its place for a rehearsal without one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from engines.backends import onnxruntime_cuda
from engines.backends.cuda.api import CudaApi, CudaDevice
from engines.backends.cuda.fake import FakeCuda
from engines.backends.cuda.find import find_cuda
from engines.backends.options import EngineOptions, GpuOptions
from tests.support.cuda_sessions import Session
from tests.support.fake_tensorrt import FakeTensorRT


def install_fakes() -> FakeCuda:
    """Let this process believe that it has a GPU, TensorRT and an ONNX Runtime with CUDA."""
    cuda = FakeCuda()
    sys.modules["tensorrt"] = FakeTensorRT("8.6", cuda.devices[0])  # type: ignore[assignment]

    def opener(model_file: Path, options: EngineOptions, gpu: GpuOptions) -> Any:
        return lambda index, stream: Session(model_file, cuda.devices[index], stream)

    onnxruntime_cuda.session_opener = opener
    return cuda


def cuda_of(dry_run: bool) -> CudaApi:
    """The way to CUDA. Ends the script with what is missing."""
    return install_fakes() if dry_run else find_cuda()


def first_device(dry_run: bool) -> CudaDevice:
    """The device that everything is measured on."""
    return cuda_of(dry_run).device(0)
