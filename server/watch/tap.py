"""Takes a sample of what is asked and answered, and hands it on in its own time.

Rules: `offer` never blocks, never awaits and never raises; what does not fit is dropped and counted. Sinks run on one
thread of their own, and what one of them raises hurts nobody else.
Promise: an observation is held for about `GATHER_S` and the time that sinks take, never more than the bounds allow;
when the thread is closed, what was taken before has reached the sinks.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from engines.inference import Inference
from engines.request import InferRequest, InferResponse
from engines.tensor import Tensor
from server.watch.observation import Observation, Sink

log = logging.getLogger(__name__)

GATHER_S: Final = 0.1
"""How long the thread lets observations gather: ten wake-ups a second at most, none while nothing comes."""
HAND_OUT: Final = 256
"""Observations that sinks get at once, so that none of them holds the interpreter for long."""
_NEVER: Final = 1 << 62
COMPLAIN_S: Final = 60.0
"""A sink that fails is written about no more often than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapOptions:
    """How much is taken of one model version."""

    rate: float = 0.1
    """Share of the requests, drawn at random. 0: none; 1: all."""
    max_waiting: int = 4096
    """Most observations that wait for the sinks."""
    max_waiting_bytes: int = 32 << 20
    """Most bytes of tensors that these may hold."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TapStatistics:
    """A snapshot."""

    answered: int
    """Requests that passed, whether taken or not."""
    sampled: int
    """Taken, and handed to the sinks or about to be."""
    dropped: int
    """Drawn, but no room was left."""
    waiting: int
    waiting_bytes: int
    sink_errors: int
    """Times that a sink raised."""


class Tap:
    """The samples of one model version, on their way to its sinks."""

    def __init__(
        self, sinks: Sequence[Sink], options: TapOptions, thread: TapThread, clock: Callable[[], float] = time.time
    ) -> None:
        self.sinks = tuple(sinks)
        self.options = options
        self._thread = thread
        self._clock = clock
        self._waiting: deque[tuple[Observation, int]] = deque()
        self._random = random.Random(options.seed)  # noqa: S311  (which requests are sampled is no secret)
        self._passed = self._sampled = self._dropped = self._sink_errors = 0
        self._bytes_in = self._bytes_out = 0
        self._complained = -math.inf
        self._handing = threading.Lock()
        self._closed = False
        self._left = self._gap()
        thread.add(self)

    def __repr__(self) -> str:
        now = self.statistics()
        return (
            f"<Tap [sampled: {now.sampled} of {now.answered} | dropped: {now.dropped} | "
            f"waiting: {now.waiting}, {now.waiting_bytes} bytes | sink errors: {now.sink_errors}]>"
        )

    def offer(self, request: InferRequest, response: InferResponse) -> None:
        """One request was answered. On the event loop only."""
        self._left -= 1
        if self._left <= 0:
            self._take(request, response)

    def statistics(self) -> TapStatistics:
        """A snapshot."""
        return TapStatistics(
            answered=self._passed - max(0, self._left), sampled=self._sampled, dropped=self._dropped,
            waiting=len(self._waiting), waiting_bytes=self._bytes_in - self._bytes_out, sink_errors=self._sink_errors,
        )  # fmt: skip

    def hand_out(self) -> None:
        """Give the sinks all that waits. Blocks."""
        with self._handing:
            while self._waiting and not self._closed:
                some = [self._waiting.popleft() for _ in range(min(HAND_OUT, len(self._waiting)))]
                observations = [observation for observation, _ in some]
                for sink in self.sinks:
                    self._tell(sink, observations)
                self._bytes_out += sum(size for _, size in some)

    def close(self) -> None:
        """Hand out what waits, then close the sinks, once. Blocks."""
        self.hand_out()
        with self._handing:
            closed, self._closed = self._closed, True
        if closed:
            return
        for sink in self.sinks:
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001  (whatever a sink raises is its own affair)
                self._complain(sink, error)

    def _take(self, request: InferRequest, response: InferResponse) -> None:
        self._left = self._gap()
        size = 0
        steady = True
        for tensor in request.inputs:
            size += len(tensor.data)
            if not (isinstance(tensor.data, bytes) or tensor.data.readonly):
                steady = False
        for tensor in response.outputs:
            size += len(tensor.data)
        options = self.options
        if (
            len(self._waiting) >= options.max_waiting
            or self._bytes_in - self._bytes_out + size > options.max_waiting_bytes
        ):
            self._dropped += 1
            return
        if not steady:
            request = _copied(request)
        self._sampled += 1
        self._bytes_in += size
        self._waiting.append((Observation(request, response, self._clock()), size))
        self._thread.wake()

    def _gap(self) -> int:
        """Requests until the next that is taken: geometric, so that each is drawn independently of the others.

        A fixed stride would see only a part of callers that take turns.
        """
        rate = self.options.rate
        gap = 1 if rate >= 1 else 1 + int(self._random.expovariate(-math.log1p(-rate))) if rate > 0 else _NEVER
        self._passed += gap
        return gap

    def _tell(self, sink: Sink, observations: Sequence[Observation]) -> None:
        try:
            sink.observe(observations)
        except Exception as error:  # noqa: BLE001  (whatever a sink raises is its own affair)
            self._complain(sink, error)

    def _complain(self, sink: Sink, error: Exception) -> None:
        self._sink_errors += 1
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_S:
            self._complained = now
            log.warning("%r failed: %r", sink, error, exc_info=error)


class TapThread:
    """The one thread on which the sinks of all taps run. It starts with the first, and sleeps while nothing comes."""

    def __init__(self, gather_s: float = GATHER_S) -> None:
        self._gather_s = gather_s
        self._taps: tuple[Tap, ...] = ()
        self._changing = threading.Lock()  # versions come and go on several threads
        self._news = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, tap: Tap) -> None:
        """Care for this tap from now on."""
        with self._changing:
            self._taps = (*self._taps, tap)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """Something waits."""
        if not self._news.is_set():
            self._news.set()

    def release(self, tap: Tap) -> None:
        """The model version is gone: give its sinks the rest and close them. Blocks; harmless if done before."""
        with self._changing:
            self._taps = tuple(other for other in self._taps if other is not tap)
        tap.close()

    def close(self, timeout_s: float) -> bool:
        """Hand out what waits and close all sinks; returns whether the thread ended in time. Blocks."""
        self._stop.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        for tap in self._taps:
            self.release(tap)
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            self._news.wait()
            self._stop.wait(self._gather_s)
            self._news.clear()  # before the look: what comes now wakes it again
            for tap in self._taps:
                tap.hand_out()


class TappedInference:
    """An Inference whose requests and answers pass a tap."""

    def __init__(self, inner: Inference, tap: Tap) -> None:
        self._inner = inner
        self._tap = tap

    async def infer(self, request: InferRequest) -> InferResponse:
        """See Inference.infer. Only answers are observed."""
        response = await self._inner.infer(request)
        self._tap.offer(request, response)
        return response


def _copied(request: InferRequest) -> InferRequest:
    """With inputs of its own: a client may write to its shared memory as soon as it has the answer."""
    inputs = tuple(Tensor(tensor.name, tensor.dtype, tensor.shape, bytes(tensor.data)) for tensor in request.inputs)
    return replace(request, inputs=inputs)
