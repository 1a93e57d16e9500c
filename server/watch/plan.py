"""How a tensor becomes columns of numbers that distributions can be told of.

Small tensors are taken value by value. Large ones are reduced: random projections, which keep distances and, unlike
principal components, are not fitted to the reference, so that a fresh sample of the same world looks the same. Text
gives lengths and kinds of characters; scores of classes give the answer, and how sure it is.
Promise: the same plan makes the same columns of the same rows, in every process; a row with anything missing is NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engines.tensor import Array
from server.watch.kinds import ANSWERS_ONLY, Kind

Matrix: TypeAlias = NDArray[np.float64]

MAX_COLUMNS: Final = 64
"""Wider tensors are reduced: as many tests as this are still worth their correction."""
MAX_CATEGORIES: Final = 63
"""Categories that are told apart, the most frequent ones; all others are one more."""
FEW_VALUES: Final = 16
"""Whole numbers of at most so many kinds are categories, even where the type is a floating-point one."""
LEAST_ROWS_A_CATEGORY: Final = 20
"""And each must come back that often on average: a short reference makes no number a category."""
PROJECTIONS: Final = 12
POSITIONS: Final = 16384
"""Values of a tensor that projections look at, drawn at random where there are more."""
OTHER: Final = "(other)"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a name to show, the tensor it comes from, and what its whole numbers stand for if categories."""

    name: str
    tensor: str
    categories: tuple[str, ...] = ()
    """Names of the codes 0, 1, ...; empty for numbers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one tensor is taken apart."""

    tensor: str
    kind: Kind
    columns: tuple[Column, ...]
    values: tuple[tuple[str, ...], ...] = ()
    """For each column of NUMBERS and CATEGORIES its known categories as text; empty for a column of numbers."""
    positions: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    signs: NDArray[np.int8] = field(default_factory=lambda: np.empty((0, 0), np.int8))
    """Positions by projections: +1 and -1 (Achlioptas 2003)."""

    def extract(self, rows: Array) -> Matrix:
        """The columns of these rows of the tensor, rows first, as float64."""
        found = _EXTRACT[self.kind](self, rows)
        if found.dtype == np.float64 and not np.isfinite(found).all():
            found = np.where(np.isfinite(found), found, np.nan)
        return found

    def absent(self, rows: int) -> Matrix:
        """What stands for rows that came without the tensor."""
        return np.full((rows, len(self.columns)), np.nan)

    def as_json(self) -> dict[str, Any]:
        """All but the arrays."""
        columns = [[column.name, list(column.categories)] for column in self.columns]
        values = [list(known) for known in self.values]
        return {"tensor": self.tensor, "kind": self.kind.value, "columns": columns, "values": values}

    @classmethod
    def from_json(cls, given: Mapping[str, Any], positions: Array, signs: Array) -> Plan:
        """The inverse of `as_json`. Raises KeyError, TypeError or ValueError for anything else."""
        tensor = str(given["tensor"])
        columns = tuple(Column(str(name), tensor, tuple(map(str, known))) for name, known in given["columns"])
        values = tuple(tuple(map(str, known)) for known in given["values"])
        return cls(tensor, Kind(given["kind"]), columns, values, positions, signs)


def plan_of(tensor: str, rows: Array, kind: Kind | None = None, *, seed: int = 0) -> Plan:
    """A plan that suits these rows, of the reference: by its type and shape, or for what it is said to be."""
    kind = kind or guess(rows)
    if kind in ANSWERS_ONLY:
        return _plan_scores(tensor, rows, kind)
    if kind in (Kind.NUMBERS, Kind.CATEGORIES):
        return _plan_values(tensor, rows, kind)
    if kind in (Kind.IMAGE, Kind.EMBEDDING):
        return _plan_reduced(tensor, rows, kind, seed)
    names = {Kind.TEXT: _TEXT, Kind.SIZES: _SIZES}.get(kind, ())
    return Plan(tensor, kind, tuple(Column(f"{tensor}.{name}", tensor) for name in names))


def guess(rows: Array) -> Kind:
    """What rows like these are most likely."""
    width = int(np.prod(rows.shape[1:], dtype=np.int64))
    if rows.dtype == object:
        return Kind.CATEGORIES if width <= MAX_COLUMNS and _few(rows.ravel(), MAX_CATEGORIES) else Kind.TEXT
    if width <= MAX_COLUMNS and rows.ndim <= 2:
        return Kind.NUMBERS
    return Kind.IMAGE if rows.ndim in (3, 4) else Kind.EMBEDDING


def guess_answer(tensor: str, rows: Array, *, labelled: bool) -> Kind:
    """What an output like this is most likely: scores of classes where it has labels, adds up to 1, or says so."""
    if rows.ndim == 2 and rows.shape[1] > 1 and rows.dtype.kind in "fV":
        numbers = rows.astype(np.float64)
        if numbers.size and numbers.min() >= 0 and np.allclose(numbers.sum(axis=1), 1, atol=1e-2):
            return Kind.PROBABILITIES
        if labelled or any(word in tensor.lower() for word in ("logit", "score", "prob")):
            return Kind.LOGITS
    return guess(rows)


def _few(values: Array, most: int) -> bool:
    kinds = len(set(values.tolist()))
    return kinds <= most and kinds * LEAST_ROWS_A_CATEGORY <= len(values)


def _text_of(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _plan_values(tensor: str, rows: Array, kind: Kind) -> Plan:
    flat = rows.reshape(len(rows), -1)
    columns, values = [], []
    for index in range(flat.shape[1]):
        known = _categories_of(flat[:, index], forced=kind is Kind.CATEGORIES)
        values.append(known)
        name = tensor if flat.shape[1] == 1 else f"{tensor}[{index}]"
        columns.append(Column(name, tensor, (*known, OTHER) if known else ()))
    return Plan(tensor, kind, tuple(columns), tuple(values))


def _categories_of(column: Array, *, forced: bool) -> tuple[str, ...]:
    if column.dtype == object:
        frequent = Counter(map(_text_of, column)).most_common(MAX_CATEGORIES)
        return tuple(sorted(name for name, _ in frequent))
    numbers = column.astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not forced and not (_few(numbers, FEW_VALUES) and np.array_equal(numbers, np.round(numbers))):
        return ()
    kinds, counts = np.unique(numbers, return_counts=True)
    return tuple(f"{kinds[index]:.17g}" for index in sorted(np.argsort(-counts, kind="stable")[:MAX_CATEGORIES]))


def _plan_reduced(tensor: str, rows: Array, kind: Kind, seed: int) -> Plan:
    width = int(np.prod(rows.shape[1:], dtype=np.int64))
    random = np.random.default_rng(seed)
    positions = np.arange(width)
    if width > POSITIONS:
        positions = np.sort(random.choice(width, POSITIONS, replace=False))
    signs = (random.integers(0, 2, (len(positions), PROJECTIONS), dtype=np.int8) * 2 - 1).astype(np.int8)
    names = (*_LOOKS[kind], *(f"projection {index}" for index in range(PROJECTIONS)))
    return Plan(
        tensor, kind, tuple(Column(f"{tensor}.{name}", tensor) for name in names), positions=positions, signs=signs
    )


def _plan_scores(tensor: str, rows: Array, kind: Kind) -> Plan:
    classes = [str(index) for index in range(min(rows.shape[-1], MAX_CATEGORIES))]
    return Plan(
        tensor,
        kind,
        (Column("class", tensor, (*classes, OTHER)), *(Column(name, tensor) for name in ("confidence", *_DOUBT))),
    )


def _extract_values(plan: Plan, rows: Array) -> Matrix:
    flat = rows.reshape(len(rows), -1)
    if flat.shape[1] != len(plan.columns):
        return plan.absent(len(rows))
    found = np.empty(flat.shape, np.float64) if flat.dtype == object else flat.astype(np.float64)
    for index, known in enumerate(plan.values):
        if not known:
            if flat.dtype == object:
                found[:, index] = np.nan
        elif flat.dtype == object:
            codes = {name: code for code, name in enumerate(known)}
            found[:, index] = [codes.get(_text_of(value), len(known)) for value in flat[:, index]]
        else:
            found[:, index] = _codes(found[:, index], known)
    return found


def _codes(column: Matrix, known: Sequence[str]) -> Matrix:
    """Position of each number among those known, which are ascending; their count for others; NaN stays NaN."""
    values = np.array([float(name) for name in known])
    at = np.clip(np.searchsorted(values, column), 0, len(values) - 1)
    codes = np.where(values[at] == column, at, len(values)).astype(np.float64)
    return np.where(np.isfinite(column), codes, np.nan)


def _extract_reduced(plan: Plan, rows: Array) -> Matrix:
    flat = rows.reshape(len(rows), -1).astype(np.float32)
    if flat.shape[1] <= plan.positions[-1]:
        return plan.absent(len(rows))
    mean, spread = flat.mean(axis=1, dtype=np.float64), flat.std(axis=1, dtype=np.float64)
    looks = [mean, spread]
    if plan.kind is Kind.IMAGE:  # neighbours in a row: what blur takes away and noise adds
        lines = rows.reshape(len(rows), -1, rows.shape[-1]).astype(np.float32)
        looks.append(np.abs(np.diff(lines, axis=2)).mean(axis=(1, 2), dtype=np.float64))
    projected = flat[:, plan.positions] @ plan.signs.astype(np.float32) / np.float32(np.sqrt(len(plan.positions)))
    return np.column_stack([*looks, projected.astype(np.float64)])


def _extract_text(plan: Plan, rows: Array) -> Matrix:
    """Of each row: characters, words, and the shares of letters, digits, and characters beyond ASCII."""
    del plan
    found = np.zeros((len(rows), len(_TEXT)))
    for index, row in enumerate(rows.reshape(len(rows), -1)):
        text = " ".join(map(_text_of, row.tolist()))
        length = max(1, len(text))
        letters, digits = sum(map(str.isalpha, text)), sum(map(str.isdigit, text))
        foreign = sum(character > "\x7f" for character in text)
        found[index] = (len(text), len(text.split()), letters / length, digits / length, foreign / length)
    return found


def _extract_sizes(plan: Plan, rows: Array) -> Matrix:
    if rows.dtype == object:
        return plan.absent(len(rows))
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    if flat.shape[1] == 0:
        return np.column_stack([np.zeros(len(rows)), np.full((len(rows), 2), np.nan)])
    return np.column_stack([np.full(len(rows), flat.shape[1]), flat.mean(axis=1), flat.std(axis=1)])


def _extract_scores(plan: Plan, rows: Array) -> Matrix:
    """The class, its probability, its lead over the second, and the entropy in nats; by softmax from logits."""
    scores = rows.reshape(len(rows), -1).astype(np.float64)
    if scores.shape[1] < 2:
        return plan.absent(len(rows))
    broken = np.logical_not(np.isfinite(scores)).any(axis=1)
    scores = np.where(broken.reshape(-1, 1), 0.0, scores)
    if plan.kind is Kind.LOGITS:
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    second, first = np.partition(scores, -2, axis=1)[:, -2:].T
    logs = np.log(np.where(scores > 0, scores, 1.0))
    known = len(plan.columns[0].categories) - 1
    found = np.column_stack(
        [np.minimum(scores.argmax(axis=1), known), first, first - second, -(scores * logs).sum(axis=1)]
    )
    found[broken] = np.nan
    return found


_TEXT: Final = ("length", "words", "letters", "digits", "beyond ASCII")
_SIZES: Final = ("size", "mean", "spread")
_DOUBT: Final = ("margin", "entropy")
_LOOKS: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.IMAGE: ("brightness", "contrast", "sharpness"),
    Kind.EMBEDDING: ("mean", "spread"),
}
_EXTRACT: Final[Mapping[Kind, Callable[[Plan, Array], Matrix]]] = {
    Kind.NUMBERS: _extract_values,
    Kind.CATEGORIES: _extract_values,
    Kind.IMAGE: _extract_reduced,
    Kind.EMBEDDING: _extract_reduced,
    Kind.TEXT: _extract_text,
    Kind.SIZES: _extract_sizes,
    Kind.PROBABILITIES: _extract_scores,
    Kind.LOGITS: _extract_scores,
    Kind.IGNORED: lambda plan, rows: plan.absent(len(rows)),
}
