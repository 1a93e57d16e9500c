"""The package `tensorrt`, whichever of its major versions is installed.

Rule: what differs between versions is asked of the package by name (`hasattr`), never by the integers of its
    enumerations, which shift between majors.
Rule: nothing here makes a Runtime or a Builder before the driver was asked for a device: without one they end the
    process.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any, Final

from engines.backends.cuda.api import CudaApi, CudaError
from engines.errors import LoadFailed
from engines.tensor import DType

log = logging.getLogger(__name__)

NEEDED: Final = "this needs NVIDIA's TensorRT: install kairos[gpu] on a host with an NVIDIA driver, see docs/gpu.md"

DTYPES: Final = {
    "FLOAT": DType.FP32,
    "HALF": DType.FP16,
    "BF16": DType.BF16,
    "INT8": DType.INT8,
    "INT32": DType.INT32,
    "INT64": DType.INT64,
    "BOOL": DType.BOOL,
    "UINT8": DType.UINT8,
    "FP8": DType.UINT8,  # the protocol has no name for it: its bytes travel as they are
}
"""By the names of tensorrt.DataType. Four-bit types are missing: no request can carry half a byte."""


def load() -> Any:  # noqa: ANN401  (a module without types)
    """The package. Raises LoadFailed, saying what is missing."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise LoadFailed(f"{NEEDED} ({error})") from error


def probe(api: CudaApi) -> int:
    """How many devices there are; at least one. Raises LoadFailed."""
    try:
        count = api.count()
    except CudaError as error:
        raise LoadFailed(f"no NVIDIA GPU can be used: {error}") from error
    if count == 0:
        raise LoadFailed("no NVIDIA GPU is visible to this process (see CUDA_VISIBLE_DEVICES)")
    return count


def dtype_of(data_type: Any, tensor: str) -> DType:  # noqa: ANN401  (an enumeration without types)
    """The element type of one of TensorRT's. Raises LoadFailed for those that no request can carry."""
    found = DTYPES.get(data_type.name)
    if found is None:
        raise LoadFailed(f"tensor '{tensor}': requests cannot carry TensorRT's type {data_type.name}")
    return found


def make_logger(trt: Any) -> Any:  # noqa: ANN401  (as above)
    """One of TensorRT's loggers that passes all on to ours; what it calls information is for debugging here."""
    levels = {
        "INTERNAL_ERROR": logging.CRITICAL,
        "ERROR": logging.ERROR,
        "WARNING": logging.WARNING,
        "INFO": logging.DEBUG,
    }

    class Forwarding(trt.ILogger):  # type: ignore[misc]  # a base without types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401  (as above)
            level = levels.get(severity.name)
            if level is not None:
                log.log(level, "TensorRT: %s", msg)

    return Forwarding()
