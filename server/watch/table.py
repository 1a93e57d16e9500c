"""Tensors of many requests as one table of columns, and the reference's table that others are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from engines.spec import ModelSpec
from engines.tensor import Array, DType, Tensor, to_array
from server.watch.kinds import Kind
from server.watch.plan import Column, Matrix, Plan, guess_answer, plan_of
from server.watch.settings import Hints
from server.watch.sketch import ColumnSketch, Sample

MAX_TABLE_COLUMNS: Final = 256
"""Of all inputs together; the tensors beyond are left out, and named."""


class Table:
    """What is known of some tensors: how they become columns, a profile of all rows, and a sample of them."""

    def __init__(self, plans: Sequence[Plan], sample: Sample | None = None, *, seed: int = 0) -> None:
        self.plans = tuple(plan for plan in plans if plan.columns)
        self.columns: tuple[Column, ...] = tuple(column for plan in self.plans for column in plan.columns)
        self.sketches = [ColumnSketch(column) for column in self.columns]
        self.sample = sample or Sample.empty(len(self.columns))
        self.rows = 0
        self._random = np.random.default_rng(seed)

    def add(self, rows: Matrix) -> None:
        """Take extracted rows into the profile and the sample."""
        self.rows += len(rows)
        for sketch, values in zip(self.sketches, rows.T, strict=True):
            sketch.update(values)
        self.sample.update(rows, self._random)

    def merge(self, other: Table) -> None:
        """As if this one had seen the other's rows too; both have the same plans and different seeds."""
        self.rows += other.rows
        for mine, theirs in zip(self.sketches, other.sketches, strict=True):
            mine.merge(theirs)
        self.sample.merge(other.sample)

    def of_arrays(self, arrays: Mapping[str, Array], rows: int) -> Matrix:
        """The columns of tensors given as arrays, rows first; those that are not there are missing."""
        parts = [
            plan.extract(arrays[plan.tensor]) if plan.tensor in arrays else plan.absent(rows) for plan in self.plans
        ]
        return np.concatenate(parts, axis=1) if parts else np.empty((rows, 0))

    def of_requests(self, requests: Sequence[Sequence[Tensor]], rows: Sequence[int], *, batched: bool) -> Matrix:
        """The columns of the tensors of many requests, one below the other; request i has `rows[i]` rows."""
        parts = [_extract(plan, requests, rows, batched=batched) for plan in self.plans]
        return np.concatenate(parts, axis=1) if parts else np.empty((sum(rows), 0))


def _extract(plan: Plan, requests: Sequence[Sequence[Tensor]], rows: Sequence[int], *, batched: bool) -> Matrix:
    found = [next((tensor for tensor in request if tensor.name == plan.tensor), None) for request in requests]
    first = found[0]
    if first is not None and first.dtype is not DType.BYTES:
        start = 1 if batched else 0
        shape = first.shape[start:]
        alike = [tensor for tensor in found if tensor is not None and tensor.shape[start:] == shape]
        if len(alike) == len(found):  # as nearly always: all rows at once
            joined = np.frombuffer(b"".join([tensor.data for tensor in alike]), first.dtype.numpy)
            return plan.extract(joined.reshape(sum(rows), *shape))
    parts = [
        plan.absent(count) if tensor is None else plan.extract(rows_of(tensor, batched=batched))
        for tensor, count in zip(found, rows, strict=True)
    ]
    return np.concatenate(parts)


def rows_of(tensor: Tensor, *, batched: bool) -> Array:
    """The tensor as an array with the rows first; one row where the model has no batch dimension."""
    array = to_array(tensor)
    return array if batched else array[None]


def input_plans(spec: ModelSpec, arrays: Mapping[str, Array], hints: Hints) -> list[Plan]:
    """Plans for the inputs that suit these rows; tensors of varying shape, and such beyond the bound, differ."""
    plans: list[Plan] = []
    columns = 0
    for seed, tensor in enumerate(spec.inputs):
        if tensor.name not in arrays:
            continue
        kind = hints.kinds.get(tensor.name)
        if kind is None and not tensor.fixed:
            kind = Kind.TEXT if tensor.dtype is DType.BYTES else Kind.SIZES
        plan = plan_of(tensor.name, arrays[tensor.name], kind, seed=seed)
        if plan.kind is not Kind.IGNORED and columns + len(plan.columns) <= MAX_TABLE_COLUMNS:
            plans.append(plan)
            columns += len(plan.columns)
    return plans


def answer_plan(spec: ModelSpec, arrays: Mapping[str, Array], hints: Hints) -> Plan | None:
    """The plan for the output that is watched, if there is any."""
    candidates: list[tuple[str, Kind]] = []
    for tensor in spec.outputs:
        if tensor.name not in arrays or hints.answer not in ("", tensor.name):
            continue
        kind = hints.kinds.get(tensor.name) or (
            guess_answer(tensor.name, arrays[tensor.name], labelled=bool(tensor.labels)) if tensor.fixed else Kind.SIZES
        )
        if kind is not Kind.IGNORED:
            candidates.append((tensor.name, kind))
    ranked = sorted(candidates, key=lambda found: _RANK.index(found[1]) if found[1] in _RANK else len(_RANK))
    return plan_of(ranked[0][0], arrays[ranked[0][0]], ranked[0][1]) if ranked else None


_RANK: Final = (Kind.PROBABILITIES, Kind.LOGITS, Kind.CATEGORIES, Kind.NUMBERS)
