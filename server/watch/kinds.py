"""What a tensor may be taken for."""

from __future__ import annotations

import enum
from typing import Final


class Kind(enum.StrEnum):
    """What a tensor is taken for."""

    NUMBERS = "numbers"
    IMAGE = "image"
    EMBEDDING = "embedding"
    TEXT = "text"
    CATEGORIES = "categories"
    SIZES = "sizes"
    """Shapes vary from row to row: only statistics of the values are kept."""
    PROBABILITIES = "probabilities"
    LOGITS = "logits"
    IGNORED = "ignored"


ANSWERS_ONLY: Final = frozenset({Kind.PROBABILITIES, Kind.LOGITS})
"""Scores of classes, from which the answer and its confidence are read."""
