"""Choices between candidates, and the words for them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.build.choose import NOISE, Contender, choose

LOSS = "loss of accuracy"
FP32 = Contender(label="fp32", drop=0.0, judged_by=LOSS, seconds={1: 1.0, 32: 10.0})


def contender(label: str, drop: float, *seconds: float) -> Contender:
    return Contender(label=label, drop=drop, judged_by=LOSS, seconds=dict(zip((1, 32), seconds, strict=False)))


def test_the_fastest_within_the_drop_wins() -> None:
    made = [contender("a", 0.0, 0.8, 8.0), contender("b", 0.005, 0.5, 5.0), contender("c", 0.02, 0.1, 1.0), FP32]
    found = choose(made, 0.01, FP32, never_slower=True)
    assert found.label == "b"
    assert found.reason == (
        "b: 2.00 times as fast as fp32 at 1 row, 2.00 times as fast as fp32 at 32 rows, loss of accuracy 0.50%"
    )
    assert found.verdicts["c"] == "refused: loss of accuracy 2.00%, allowed 1.00%"


def test_auto_leaves_out_what_is_slower_anywhere() -> None:
    found = choose([contender("a", 0.0, 1.2, 2.0), FP32], 0.01, FP32, never_slower=True)
    assert found.label == "fp32"
    assert found.verdicts["a"] == "left out: 0.83 times as fast at 1 row"
    assert "nothing within the allowed drop is clearly faster" in found.reason


def test_what_was_asked_for_is_published_even_if_it_does_not_pay() -> None:
    found = choose([contender("int8", 0.0, 1.2, 12.0)], 0.01, FP32, never_slower=False)
    assert found.label == "int8"
    assert found.reason.endswith("on this processor it does not pay")


def test_nothing_passes() -> None:
    found = choose([contender("a", 0.5, 1, 1), contender("b", 0.2, 1, 1)], 0.01, FP32, never_slower=False)
    assert found.label is None
    assert "20.00%" in found.reason


def test_a_drop_that_is_not_a_number_never_passes() -> None:
    assert choose([contender("a", float("nan"), 1, 1)], 0.01, FP32, never_slower=False).label is None


def test_without_times_the_order_decides() -> None:
    made = [contender("int8+fp16", 0.02), contender("int8", 0.0), contender("fp32", 0.0)]
    found = choose(made, 0.01, made[-1], never_slower=True)
    assert found.label == "int8"
    assert "first in order of preference" in found.reason


TIMES = st.tuples(st.floats(0.1, 10), st.floats(0.1, 100))


@given(st.lists(st.tuples(st.floats(0, 0.05), TIMES), max_size=5))
def test_auto_is_never_slower_than_fp32_beyond_the_noise(drawn: list[tuple[float, tuple[float, float]]]) -> None:
    made = [contender(f"c{index}", drop, *times) for index, (drop, times) in enumerate(drawn)]
    found = choose([*made, FP32], 0.01, FP32, never_slower=True)
    chosen = next(each for each in (*made, FP32) if each.label == found.label)
    assert chosen.drop <= 0.01
    for rows, spent in chosen.seconds.items():
        assert spent <= FP32.seconds[rows] / (1 - NOISE)
