"""Makes a reference of data and of a model's answers to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias

from engines.spec import ModelSpec
from engines.tensor import Array
from server.watch.reference import Reference
from server.watch.settings import Hints
from server.watch.table import Table, answer_plan, input_plans

PLAN_ROWS: Final = 1024
"""Rows, spread over all, that plans are made from."""
CHUNK_ROWS: Final = 1024

Arrays: TypeAlias = Mapping[str, Array]
Progress: TypeAlias = Callable[[str, int, int], None]


class Rows(Protocol):
    """Inputs that lie in some file, rows first."""

    @property
    def source(self) -> str: ...
    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def spread(self, most: int) -> Rows: ...
    def take(self, start: int, stop: int) -> dict[str, Array]: ...


def make_reference(
    spec: ModelSpec,
    hints: Hints,
    data: Rows,
    answer: Callable[[Arrays], Arrays],
    progress: Progress,
    *,
    model_digest: str,
) -> Reference:
    """Profile all rows, and what `answer` makes of them. Raises what `answer` raises."""
    some = data.spread(PLAN_ROWS)
    arrays = some.take(0, len(some))
    plan = answer_plan(spec, answer(arrays), hints)
    inputs = Table(input_plans(spec, arrays, hints))
    answers = None if plan is None else Table([plan])
    for start in range(0, len(data), CHUNK_ROWS):
        part = data.take(start, start + CHUNK_ROWS)
        rows = len(next(iter(part.values())))
        inputs.add(inputs.of_arrays(part, rows))
        if answers is not None:
            answers.add(answers.of_arrays(answer(part), rows))
        progress("profiling", start + rows, len(data))
    return Reference(
        inputs=inputs, answers=answers, model_digest=model_digest, data_digest=data.digest, source=data.source,
        made=time.time(),
    )  # fmt: skip
