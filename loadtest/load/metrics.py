"""The server's side of a run, from its Prometheus metrics: CPU over time, and the sizes of the batches it formed."""

from __future__ import annotations

import itertools
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

CPU: Final = "process_cpu_seconds_total"
BATCH_BUCKETS: Final = "kairos_batch_rows_bucket"
_SAMPLE: Final = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LE: Final = re.compile(r'(?:^|,)le="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one look at the metrics showed."""

    at: float
    cpu_s: float
    batch_buckets: Mapping[float, float]
    """Batches of at most so many rows, all models together."""


def parse(text: str, at: float) -> Scrape:
    """The figures wanted out of the Prometheus text format; those that are missing count as 0."""
    cpu_s = 0.0
    buckets: dict[float, float] = {}
    for line in text.splitlines():
        if not line.startswith((CPU, BATCH_BUCKETS)):
            continue
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        if sample["name"] == CPU:
            cpu_s += float(sample["value"])
        elif sample["name"] == BATCH_BUCKETS and (bound := _LE.search(sample["labels"] or "")):
            buckets[float(bound[1])] = buckets.get(float(bound[1]), 0.0) + float(sample["value"])
    return Scrape(at, cpu_s, buckets)


def fetch(url: str) -> Scrape:
    """One look. OSError where nobody answers."""
    with urllib.request.urlopen(url, timeout=5.0) as answer:
        text = answer.read().decode()
    return parse(text, time.monotonic())


def batch_sizes(before: Scrape, after: Scrape) -> dict[str, float]:
    """Batches by the upper bound of their bucket, formed between two looks."""
    sizes, below = {}, 0.0
    for bound in sorted(after.batch_buckets):
        upto = after.batch_buckets[bound] - before.batch_buckets.get(bound, 0.0)
        if upto > below:
            sizes[f"{bound:g}"] = upto - below
        below = upto
    return sizes


def between(scrapes: Iterable[Scrape], began: float) -> dict[str, Any]:
    """What happened from the first look to the last."""
    seen = list(scrapes)
    first, last = seen[0], seen[-1]
    pairs = [(a, b) for a, b in itertools.pairwise(seen) if b.at > a.at]
    return {
        "cpu_s": last.cpu_s - first.cpu_s,
        "cores": [[(a.at + b.at) / 2 - began, (b.cpu_s - a.cpu_s) / (b.at - a.at)] for a, b in pairs],
        "batches": batch_sizes(first, last),
    }


@dataclass
class Watch:
    """Looks at the metrics in a thread of its own, from `start` until `stop`."""

    url: str
    every_s: float = 1.0
    look: Callable[[str], Scrape] = fetch
    scrapes: list[Scrape] = field(default_factory=list)

    def start(self) -> None:
        """Take the first look. OSError where nobody answers."""
        self._began = time.monotonic()
        self.scrapes.append(self.look(self.url))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(self.every_s):
            try:
                self.scrapes.append(self.look(self.url))
            except OSError:  # a server that is too busy to tell is asked again
                continue

    def stop(self) -> dict[str, Any]:
        """Take the last look, and say what happened."""
        self._over.set()
        self._thread.join()
        self.scrapes.append(self.look(self.url))
        return between(self.scrapes, self._began)
