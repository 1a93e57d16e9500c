"""How far one model's answers are from another's, in the terms in which people judge a model.

Rule: nothing here runs a model; answers come in as arrays, rows first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engines.build.data import Labels
from engines.build.errors import BuildFailed
from engines.tensor import Array

Floats = NDArray[np.float64]

TOP_K: Final = 5
WORST: Final = 5
"""How many of the worst rows are shown."""
_NAMES: Final = ("logit", "prob", "score")
"""Outputs called so hold a number for each class, even if the rows do not add up to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputError:
    """One output, the candidate's against the reference's."""

    name: str
    cosine: float
    """Mean over the rows of the cosine between the two answers; 1 is best."""
    max_error: float
    """Largest absolute difference."""
    unexplained: float
    """Variance of the difference over variance of the reference: 0 is best, 1 as bad as a constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstRow:
    """One of the rows on which the two differ most."""

    row: int
    distance: float
    """KL divergence in nats for classifiers, else root mean square difference."""
    reference: int | None
    candidate: int | None
    label: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All of it. Fields about classes are None for models that do not classify."""

    rows: int
    outputs: tuple[OutputError, ...]
    scores: str | None
    """The output with a number for each class."""
    agreement: float | None
    """Share of rows with the same best class."""
    top_k_agreement: float | None
    """Share of rows whose best class is among the candidate's five best."""
    accuracy: tuple[float, float] | None
    """Of the reference and of the candidate, where there are labels."""
    divergence: float | None
    """Mean KL divergence of the class distributions, in nats."""
    worst: tuple[WorstRow, ...]
    drop: float
    """What the gate looks at; 0 is best."""
    judged_by: str
    """What `drop` is."""


def compare(
    reference: Mapping[str, Array], candidate: Mapping[str, Array], labels: Labels | None = None, output: str = ""
) -> Comparison:
    """Compare the answers to the same rows. Raises BuildFailed when they cannot be compared.

    `output` names the output with the scores; empty: it is recognised.
    """
    missing = sorted(reference.keys() - candidate.keys())
    if missing:
        raise BuildFailed(f"the second model has no output '{missing[0]}'")
    for name, array in reference.items():
        if array.shape != candidate[name].shape:
            raise BuildFailed(f"output '{name}': {list(array.shape)} and {list(candidate[name].shape)} do not compare")
    numbers = {n: a for n, a in reference.items() if np.issubdtype(a.dtype, np.number) or a.dtype == np.bool_}
    if not numbers:
        raise BuildFailed("no output holds numbers")
    errors = tuple(_output_error(name, array, candidate[name]) for name, array in numbers.items())
    rows = len(next(iter(numbers.values())))
    scores = _scores_of(numbers, labels, output)
    if scores is None:
        return _values_only(rows, errors, numbers, candidate, labels)
    return _classes(rows, errors, scores, _floats(numbers[scores]), _floats(candidate[scores]), labels)


def _floats(array: Array) -> Floats:
    return array.astype(np.float64)


def _output_error(name: str, first: Array, second: Array) -> OutputError:
    if not np.issubdtype(first.dtype, np.floating) and first.dtype.kind != "V":
        differing = float(np.mean(first != second)) if first.size else 0.0
        return OutputError(name=name, cosine=1.0 - differing, max_error=float(differing > 0), unexplained=differing)
    a, b = _floats(first).reshape(len(first), -1), _floats(second).reshape(len(first), -1)
    if not np.isfinite(b[np.isfinite(a)]).all():
        return OutputError(name=name, cosine=0.0, max_error=float("inf"), unexplained=float("inf"))
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = np.all(a == b, axis=1)
    cosines = np.where(same, 1.0, np.sum(a * b, axis=1) / np.where(lengths > 0, lengths, 1.0))
    variance = float(np.mean((a - a.mean(axis=0)) ** 2))
    squared = float(np.mean((a - b) ** 2))
    if variance == 0.0:
        variance = float(np.mean(a**2)) or 1.0
    return OutputError(
        name=name, cosine=float(cosines.mean()), max_error=float(np.abs(a - b).max()), unexplained=squared / variance
    )


def _scores_of(outputs: Mapping[str, Array], labels: Labels | None, named: str) -> str | None:
    if named:
        if named not in outputs or outputs[named].ndim != 2:
            raise BuildFailed(f"output '{named}' has no row of scores; outputs are {', '.join(outputs)}")
        return named
    tables = [n for n, a in outputs.items() if a.ndim == 2 and a.shape[1] > 1 and np.issubdtype(a.dtype, np.floating)]
    clear = [name for name in tables if _adds_up(outputs[name]) or any(part in name.lower() for part in _NAMES)]
    if clear:
        return clear[0]
    if labels is None:
        return None
    if not tables:
        raise BuildFailed("there are labels, but no output has a row of scores")
    return tables[0]


def _adds_up(array: Array) -> bool:
    return bool(array.size and array.min() >= 0 and np.allclose(array.sum(axis=1, dtype=np.float64), 1, atol=1e-2))


def _distribution(scores: Floats) -> Floats:
    if _adds_up(scores):
        return np.maximum(scores, 1e-12)
    powers: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return np.maximum(shares, 1e-12)


def _classes(
    rows: int, errors: tuple[OutputError, ...], scores: str, first: Floats, second: Floats, labels: Labels | None
) -> Comparison:
    broken = not np.isfinite(second).all()
    second = np.nan_to_num(second, nan=0.0, posinf=0.0, neginf=0.0)
    best, chosen = first.argmax(axis=1), second.argmax(axis=1)
    k = min(TOP_K, first.shape[1])
    top = np.argpartition(-second, k - 1, axis=1)[:, :k]
    p, q = _distribution(first), _distribution(second)
    distances = np.sum(p * np.log(p / q), axis=1)
    agreement = 0.0 if broken else float(np.mean(best == chosen))
    accuracy = None
    drop, judged_by = 1.0 - agreement, "share of rows whose best class differs"
    if labels is not None:
        accuracy = (float(np.mean(best == labels)), 0.0 if broken else float(np.mean(chosen == labels)))
        drop, judged_by = max(0.0, accuracy[0] - accuracy[1]), "loss of accuracy"
    worst = tuple(
        WorstRow(
            row=int(row),
            distance=float(distances[row]),
            reference=int(best[row]),
            candidate=int(chosen[row]),
            label=None if labels is None else int(labels[row]),
        )
        for row in np.argsort(-distances, kind="stable")[:WORST]
    )
    return Comparison(
        rows=rows,
        outputs=errors,
        scores=scores,
        agreement=agreement,
        top_k_agreement=float(np.mean((top == best[:, None]).any(axis=1))),
        accuracy=accuracy,
        divergence=float(distances.mean()),
        worst=worst,
        drop=drop,
        judged_by=judged_by,
    )


def _values_only(
    rows: int,
    errors: tuple[OutputError, ...],
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    labels: Labels | None,
) -> Comparison:
    hardest = max(errors, key=lambda error: error.unexplained)
    first, second = (_floats(arrays[hardest.name]).reshape(rows, -1) for arrays in (reference, candidate))
    distances = np.nan_to_num(np.sqrt(np.mean((first - second) ** 2, axis=1)), nan=np.inf)
    worst = tuple(
        WorstRow(row=int(row), distance=float(distances[row]), reference=None, candidate=None, label=None)
        for row in np.argsort(-distances, kind="stable")[:WORST]
    )
    assert labels is None
    return Comparison(
        rows=rows,
        outputs=errors,
        scores=None,
        agreement=None,
        top_k_agreement=None,
        accuracy=None,
        divergence=None,
        worst=worst,
        drop=hardest.unexplained,
        judged_by=f"unexplained variance of '{hardest.name}'",
    )


def error_of(comparison: Comparison) -> float:
    """A fine-grained error for ranking: unexplained variance of the scores, or of the worst output."""
    chosen = [error.unexplained for error in comparison.outputs if comparison.scores in (None, error.name)]
    return max(chosen)
