"""A reference from the first requests, where nobody made a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from engines.spec import ModelSpec
from engines.tensor import Array, Tensor
from server.watch.observation import Observation
from server.watch.reference import Reference
from server.watch.settings import WatchOptions
from server.watch.table import Table, answer_plan, input_plans, rows_of

MAX_BYTES: Final = 64 << 20
"""Most bytes of tensors that are kept until the plans are made; what came until then has to do."""


class Lessons:
    """Requests and answers, copied, until there are enough."""

    def __init__(self, spec: ModelSpec, options: WatchOptions) -> None:
        self._spec = spec
        self._options = options
        self._inputs: list[tuple[Tensor, ...]] = []
        self._outputs: list[tuple[Tensor, ...]] = []
        self._rows: list[int] = []
        self._bytes = 0
        self.rows = 0
        """Rows so far."""

    def take(self, observation: Observation) -> Reference | None:
        """Learn from this one; returns the reference once there is enough."""
        self._inputs.append(self._copied(observation.request.inputs))
        self._outputs.append(self._copied(observation.response.outputs))
        self._rows.append(observation.request.rows)
        self.rows += observation.request.rows
        if self.rows >= self._options.learn_rows or self._bytes >= MAX_BYTES:
            return self._reference(observation.at)
        return None

    def _copied(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        self._bytes += sum(len(tensor.data) for tensor in tensors)
        return tuple(Tensor(each.name, each.dtype, each.shape, bytes(each.data)) for each in tensors)

    def _reference(self, at: float) -> Reference:
        spec, hints = self._spec, self._options.hints
        inputs = Table(input_plans(spec, self._arrays(self._inputs), hints))
        inputs.add(inputs.of_requests(self._inputs, self._rows, batched=spec.batched))
        answers = None
        if (plan := answer_plan(spec, self._arrays(self._outputs), hints)) is not None:
            answers = Table([plan])
            asked = [any(tensor.name == plan.tensor for tensor in tensors) for tensors in self._outputs]
            found = answers.of_requests(self._outputs, self._rows, batched=spec.batched)
            answers.add(found[np.repeat(asked, self._rows)])
        return Reference(
            inputs=inputs, answers=answers, source=f"learned from the first {inputs.rows} rows sampled", made=at
        )

    def _arrays(self, requests: Sequence[Sequence[Tensor]]) -> Mapping[str, Array]:
        """Rows of each tensor that have the shape of its first."""
        found: dict[str, list[Array]] = {}
        for request in requests:
            for tensor in request:
                rows = rows_of(tensor, batched=self._spec.batched)
                parts = found.setdefault(tensor.name, [])
                if not parts or parts[0].shape[1:] == rows.shape[1:]:
                    parts.append(rows)
        return {name: np.concatenate(parts) for name, parts in found.items()}
