"""An engine for tests and rehearsals: exact answers, chosen durations, faults on demand. Needs no model file."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from engines.errors import EngineDied
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array, DType


def fake_spec(name: str = "fake", max_rows: int = 8, width: int = 4) -> ModelSpec:
    """A model of one FP32 input `x` and output `y` with `width` elements a row."""
    return ModelSpec(
        name=name,
        version=1,
        platform="fake",
        inputs=(TensorSpec("x", DType.FP32, (width,)),),
        outputs=(TensorSpec("y", DType.FP32, (width,)),),
        max_rows=max_rows,
    )


class FakeEngine:
    """Each output is what `answer` makes of the inputs; by default the input at the same place, times two.

    `seconds(rows)` is how long an execution of that many rows sleeps. Executions are counted from 1: those in
    `fails_on` raise, the one that is `dies_on` kills the engine. `before` runs first in each execution: tests block
    there on an event, or look at what the engine was given.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        seconds: Callable[[int], float] | None = None,
        fails_on: Collection[int] = (),
        dies_on: int = 0,
        before: Callable[[Mapping[str, Array]], None] | None = None,
        answer: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None,
    ) -> None:
        self._spec = spec
        self._seconds = seconds
        self._fails_on = fails_on
        self._dies_on = dies_on
        self._before = before
        self._answer = answer or self._double
        self.executions = 0
        self.closed = False

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def execute(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> Mapping[str, Array]:
        """See Engine.execute."""
        self.executions += 1
        if self._before is not None:
            self._before(inputs)
        rows = next(iter(inputs.values())).shape[0] if self._spec.batched else 1
        if self._seconds is not None:
            time.sleep(self._seconds(rows))
        if self.executions == self._dies_on:
            raise EngineDied(f"killed on execution {self.executions}")
        if self.executions in self._fails_on:
            raise RuntimeError(f"told to fail on execution {self.executions}")
        return {name: array for name, array in self._answer(inputs).items() if name in wanted}

    def close(self) -> None:
        """See Engine.close."""
        self.closed = True

    def _double(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        pairs = zip(self._spec.inputs, self._spec.outputs, strict=False)
        return {
            output.name: inputs[source.name].copy() if source.dtype is DType.BYTES else inputs[source.name] * 2
            for source, output in pairs
        }
