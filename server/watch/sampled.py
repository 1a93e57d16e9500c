"""Passes on a share of what a tap took."""

from __future__ import annotations

import random
from collections.abc import Sequence

from server.watch.observation import Observation, Sink


class SampledSink:
    """`share` of the observations, each drawn independently of the others."""

    def __init__(self, sink: Sink, share: float, seed: int = 0) -> None:
        self._sink = sink
        self._share = share
        self._random = random.Random(seed)  # noqa: S311  (which requests are sampled is no secret)

    def __repr__(self) -> str:
        return f"<SampledSink {self._share:g} of {self._sink!r}>"

    def observe(self, observations: Sequence[Observation]) -> None:
        """See Sink.observe."""
        if kept := [each for each in observations if self._random.random() < self._share]:
            self._sink.observe(kept)

    def close(self) -> None:
        """See Sink.close."""
        self._sink.close()
