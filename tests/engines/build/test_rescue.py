"""The search for the fewest layers that must stay in higher precision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.build.rescue import rank, rescue

NAMES = [f"layer{index}" for index in range(20)]
EQUAL = dict.fromkeys(NAMES, 1)


def search(needed: int, tries: int, weights: dict[str, int] | None = None) -> tuple[int | None, list[int]]:
    """How many layers were kept when the first `needed` have to be, and what was tried."""
    tried: list[int] = []

    def attempt(kept: tuple[str, ...]) -> int:
        tried.append(len(kept))
        return len(kept)

    found = rescue(NAMES, weights or EQUAL, attempt, lambda count: count >= needed, tries)
    if found is not None:
        assert found.tries == len(tried)
        assert found.kept == tuple(NAMES[: found.result])
    return (None if found is None else found.result), tried


@given(st.integers(1, 20), st.integers(0, 12))
def test_tries_are_bounded_and_at_most_half_the_weights_are_kept(needed: int, tries: int) -> None:
    kept, tried = search(needed, tries)
    assert len(tried) <= tries
    assert all(count <= 10 for count in tried)
    assert kept is None or kept >= needed


@given(st.integers(1, 10))
def test_with_tries_enough_the_fewest_are_found(needed: int) -> None:
    assert search(needed, 20)[0] == needed


def test_it_doubles_then_closes_in() -> None:
    assert search(5, 20)[1] == [1, 2, 4, 8, 6, 5]


def test_too_few_tries_keep_the_best_so_far() -> None:
    assert search(5, 4) == (8, [1, 2, 4, 8])
    assert search(5, 3) == (None, [1, 2, 4])


def test_a_layer_with_most_of_the_weights_is_never_kept() -> None:
    assert search(1, 8, EQUAL | {"layer0": 1000}) == (None, [])


def test_layers_are_ranked_by_their_errors() -> None:
    assert rank({"a": 0.1, "b": 3.0, "c": 0.2}) == ["b", "c", "a"]
