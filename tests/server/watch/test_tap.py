"""What is taken, what is dropped, and who may not hurt whom."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from engines.request import InferRequest, InferResponse
from engines.tensor import DType, Tensor, to_array
from server.watch.observation import Observation
from server.watch.tap import HAND_OUT, Tap, TapOptions, TappedInference, TapThread
from tests.support.watching import observation, world

ONE = observation(world(1, 1))


class Notebook:
    """A sink that writes everything down."""

    def __init__(self) -> None:
        self.lists: list[list[Observation]] = []
        self.closed = 0
        self.came = threading.Event()

    def observe(self, observations: Sequence[Observation]) -> None:
        self.lists.append(list(observations))
        self.came.set()

    def close(self) -> None:
        self.closed += 1

    @property
    def seen(self) -> list[Observation]:
        return [each for some in self.lists for each in some]


class Broken(Notebook):
    def observe(self, observations: Sequence[Observation]) -> None:
        raise RuntimeError("out of ink")

    def close(self) -> None:
        raise OSError("lost")


@pytest.fixture
def thread() -> Iterator[TapThread]:
    """It never hands out by itself before it is closed."""
    thread = TapThread(gather_s=3600)
    yield thread
    thread.close(10)


def test_all_that_was_taken_reaches_the_sinks_in_order(thread: TapThread) -> None:
    book, times = Notebook(), iter(range(10_000))
    tap = Tap([book], TapOptions(rate=1), thread, clock=lambda: float(next(times)))
    for _ in range(600):
        tap.offer(ONE.request, ONE.response)
    tap.hand_out()
    assert [each.at for each in book.seen] == list(range(600))
    assert max(map(len, book.lists)) == HAND_OUT
    assert book.seen[0].response is ONE.response
    assert repr(tap) == "<Tap [sampled: 600 of 600 | dropped: 0 | waiting: 0, 0 bytes | sink errors: 0]>"


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_rate_is_the_share_that_is_taken(thread: TapThread, rate: float) -> None:
    tap = Tap([], TapOptions(rate=rate, max_waiting=10**6), thread)
    for _ in range(20_000):
        tap.offer(ONE.request, ONE.response)
    found = tap.statistics()
    assert found.answered == 20_000
    assert abs(found.sampled - 20_000 * rate) <= stats.norm.ppf(0.9999) * np.sqrt(20_000 * rate * (1 - rate))


def test_the_choice_depends_on_the_seed_alone(thread: TapThread) -> None:
    def chosen(seed: int) -> list[int]:
        book, numbers = Notebook(), iter(range(1000))
        current = 0
        tap = Tap([book], TapOptions(rate=0.2, seed=seed), thread, clock=lambda: float(current))
        for current in numbers:  # noqa: B007  (the clock reads it)
            tap.offer(ONE.request, ONE.response)
        tap.hand_out()
        return [int(each.at) for each in book.seen]

    assert chosen(1) == chosen(1) != chosen(2)
    gaps = set(np.diff(chosen(1)))
    assert len(gaps) > 5  # no stride that callers could fall in step with


def test_count_and_bytes_are_bounded(thread: TapThread) -> None:
    tap = Tap([], TapOptions(rate=1, max_waiting=3), thread)
    for _ in range(5):
        tap.offer(ONE.request, ONE.response)
    assert (tap.statistics().sampled, tap.statistics().dropped) == (3, 2)
    size = tap.statistics().waiting_bytes // 3
    assert size == sum(len(tensor.data) for tensor in (*ONE.request.inputs, *ONE.response.outputs))
    tap.hand_out()
    tap.offer(ONE.request, ONE.response)
    assert (tap.statistics().sampled, tap.statistics().waiting_bytes) == (4, size)
    small = Tap([], TapOptions(rate=1, max_waiting_bytes=2 * size + 1), thread)
    for _ in range(5):
        small.offer(ONE.request, ONE.response)
    assert (small.statistics().sampled, small.statistics().dropped) == (2, 3)


def test_what_a_client_may_still_write_to_is_copied(thread: TapThread) -> None:
    book = Notebook()
    tap = Tap([book], TapOptions(rate=1), thread)
    region = bytearray(np.array([[1.0, 2.0, 3.0]]).tobytes())
    request = replace(ONE.request, inputs=(Tensor("x", DType.FP64, (1, 3), memoryview(region)),))
    tap.offer(request, ONE.response)
    region[:] = bytes(len(region))
    tap.hand_out()
    assert to_array(book.seen[0].request.inputs[0]).tolist() == [[1, 2, 3]]


def test_a_broken_sink_is_counted_and_hurts_nobody(thread: TapThread, caplog: pytest.LogCaptureFixture) -> None:
    book = Notebook()
    tap = Tap([Broken(), book], TapOptions(rate=1), thread)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            tap.offer(ONE.request, ONE.response)
            tap.hand_out()
        tap.close()
    assert len(book.seen) == 3
    assert book.closed == 1
    assert tap.statistics().sink_errors == 4
    assert len(caplog.records) == 1  # once in a while is enough
    assert "out of ink" in caplog.text


def test_the_thread_hands_out_by_itself_and_ends_with_the_rest() -> None:
    thread, book = TapThread(gather_s=0.0), Notebook()
    tap = Tap([book], TapOptions(rate=1), thread)
    tap.offer(ONE.request, ONE.response)
    assert book.came.wait(30)
    tap.offer(ONE.request, ONE.response)
    assert thread.close(30)
    assert (len(book.seen), book.closed) == (2, 1)
    assert "watch" not in [each.name for each in threading.enumerate()]


def test_a_released_tap_is_closed_once(thread: TapThread) -> None:
    first, second = Notebook(), Notebook()
    taps = [Tap([book], TapOptions(rate=1), thread) for book in (first, second)]
    for tap in taps:
        tap.offer(ONE.request, ONE.response)
    thread.release(taps[0])
    thread.release(taps[0])
    assert (len(first.seen), first.closed, second.closed) == (1, 1, 0)
    thread.close(30)
    assert (first.closed, len(second.seen), second.closed) == (1, 1, 1)


def test_a_sink_that_hangs_does_not_hold_the_end_up() -> None:
    gate, thread = threading.Event(), TapThread(gather_s=0.0)

    class Slow(Notebook):
        def observe(self, observations: Sequence[Observation]) -> None:
            super().observe(observations)
            gate.wait(60)

    book = Slow()
    tap = Tap([book], TapOptions(rate=1), thread)
    tap.offer(ONE.request, ONE.response)
    assert book.came.wait(30)
    assert not thread.close(0.01)
    gate.set()
    assert thread.close(30)


def test_only_answers_are_observed(thread: TapThread) -> None:
    class Model:
        async def infer(self, request: InferRequest) -> InferResponse:
            if request.id == "bad":
                raise ValueError("no")
            return ONE.response

    async def run() -> None:
        tap = Tap([], TapOptions(rate=1), thread)
        tapped = TappedInference(Model(), tap)
        assert await tapped.infer(ONE.request) is ONE.response
        with pytest.raises(ValueError, match="no"):
            await tapped.infer(replace(ONE.request, id="bad"))
        assert tap.statistics().answered == 1

    asyncio.run(run())
