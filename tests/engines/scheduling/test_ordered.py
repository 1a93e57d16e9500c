"""Ordered against a plain sorted list."""

from __future__ import annotations

import random

import pytest

from engines.scheduling.ordered import Entry, Ordered
from engines.scheduling.report import Pending


def entry(due: float, seq: int) -> Entry:
    return (due, seq, Pending(rows=1, arrived=0.0, deadline=due, due=due, seq=seq))


def test_it_is_a_sorted_list_whatever_happens_to_it() -> None:
    rng = random.Random(1)
    ordered, plain = Ordered(), []
    for seq in range(6000):
        if plain and rng.random() < 0.3:
            gone = plain.pop(rng.randrange(len(plain)))
            ordered.remove(gone[0], gone[1])
        elif plain and rng.random() < 0.005:
            start = rng.randrange(len(plain))
            count = rng.randrange(1, 30)
            assert ordered.pop(start, count) == plain[start : start + count]
            del plain[start : start + count]
        else:
            new = entry(float(rng.randrange(50)), seq)
            ordered.add(new)
            plain.append(new)
            plain.sort(key=lambda one: one[:2])
        assert len(ordered) == len(plain)
    assert list(ordered) == plain
    assert len(plain) > 1024
    for due in (-1.0, 0.0, 7.0, 7.5, 49.0, 99.0):
        assert ordered.rank(due) == sum(one[0] < due for one in plain)
    for rank in (0, 500, len(plain) - 1):
        assert ordered.due_at(rank) == plain[rank][0]
        assert list(ordered.walk(rank)) == plain[rank:]
    assert ordered.first() == plain[0]


def test_blocks_stay_few_and_small() -> None:
    ordered = Ordered()
    for seq in range(20_000):
        ordered.add(entry(float(seq % 997), seq))
    assert max(map(len, ordered.blocks())) <= 512
    for seq in range(20_000):
        if seq % 50:
            ordered.remove(float(seq % 997), seq)
    assert len(ordered) == 400
    assert len(ordered.blocks()) <= 12


def test_what_is_not_in_cannot_be_removed() -> None:
    ordered = Ordered()
    ordered.add(entry(1.0, 1))
    for due, seq in ((1.0, 2), (0.5, 1), (2.0, 1)):
        with pytest.raises(KeyError):
            ordered.remove(due, seq)
    assert len(ordered) == 1
