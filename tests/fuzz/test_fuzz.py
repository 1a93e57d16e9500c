"""Every target over its kept corpus and a few mutations: the short form of `make fuzz`, the same at each run."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.corpus import kept
from tests.fuzz.targets import NAMES, find

RUNS = 150


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_found_by_a_few_mutations(name: str) -> None:
    target = find(name)
    corpus = kept(target)
    try:
        for data in corpus:
            target.run(data)
        random = Random(name)
        for _ in range(RUNS):
            target.run(target.mutate(random.choice(corpus), random))
    finally:
        target.close()
