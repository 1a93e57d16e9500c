"""Which way to CUDA this process takes."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Final

from engines.backends.cuda.api import CudaApi, CudaError
from engines.backends.cuda.bindings import BindingsCuda
from engines.backends.cuda.pycuda import PyCuda
from engines.errors import LoadFailed


class Way(enum.Enum):
    """The library that calls CUDA."""

    AUTO = "auto"
    """cuda-python where it is installed, else PyCUDA: only the first has graphs and priorities."""
    CUDA_PYTHON = "cuda-python"
    PYCUDA = "pycuda"


_WAYS: Final[Mapping[Way, Callable[[], CudaApi]]] = {Way.CUDA_PYTHON: BindingsCuda, Way.PYCUDA: PyCuda}


def find_cuda(way: Way = Way.AUTO) -> CudaApi:
    """A CudaApi with at least one device. Raises LoadFailed, saying what is missing."""
    missing: list[str] = []
    for each in _WAYS if way is Way.AUTO else (way,):
        try:
            api = _WAYS[each]()
            if api.count() == 0:
                raise LoadFailed("no NVIDIA GPU is visible to this process (see CUDA_VISIBLE_DEVICES)")
        except ImportError:
            missing.append(each.value)
        except CudaError as error:
            raise LoadFailed(f"no NVIDIA GPU can be used: {error}") from error
        else:
            return api
    raise LoadFailed(f"a GPU needs {' or '.join(missing)}: install kairos[gpu], see docs/gpu.md")
