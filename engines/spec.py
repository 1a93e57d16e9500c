"""What a model version takes and gives, and how many rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

from engines.tensor import DType


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `shape` leaves out the batch dimension; -1 is any size."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    optional: bool = False
    """Inputs only: a request may leave it out."""
    labels: tuple[str, ...] = ()
    """Outputs only: the name of each class, for the classification extension."""

    @property
    def fixed(self) -> bool:
        """Whether every row of this tensor has the same shape."""
        return -1 not in self.shape


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The contract of one model version."""

    name: str
    version: int
    platform: str
    """`onnxruntime_onnx`, `tensorrt_plan`, ...: Triton's names."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_rows: int = 0
    """Most rows an execution takes. 0: tensors have no batch dimension and each request runs alone."""
    allowed_rows: tuple[int, ...] = ()
    """Row counts the engine may see, ascending, the last one `max_rows`; batches are padded up. Empty: any."""
    digest: str = ""
    """Hex digest over the model's files and configuration: what must change when answers may change."""

    @property
    def batched(self) -> bool:
        """Whether tensors carry a batch dimension."""
        return self.max_rows > 0

    @property
    def one_signature(self) -> bool:
        """Whether any two requests may share a batch: no variable dimensions and no optional inputs."""
        return all(tensor.fixed and not tensor.optional for tensor in self.inputs)
