"""Reads a metrics port the way Prometheus does: what two scrapes, some time apart, say about the time between."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Scrape:
    """All samples of one moment, by name."""

    at: float
    """Seconds on whatever clock the reader uses."""
    samples: Mapping[str, list[tuple[Labels, float]]]

    def total(self, name: str, **wanted: str) -> float:
        """The sum of all series that have these labels; 0 when there is none."""
        return sum(value for labels, value in self.samples.get(name, ()) if wanted.items() <= labels.items())

    def values(self, name: str, label: str, **wanted: str) -> list[str]:
        """The values that a label has, in order of their first appearance."""
        found = (labels[label] for labels, _ in self.samples.get(name, ()) if wanted.items() <= labels.items())
        return list(dict.fromkeys(found))


def read_scrape(text: str, at: float) -> Scrape:
    """What Prometheus's text format says. Raises ValueError when it is something else."""
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Scrape(at, samples)


def fetch(url: str, timeout_s: float) -> str:
    """The text behind a metrics URL. Raises OSError."""
    if not url.startswith(("http://", "https://")):
        raise OSError(f"'{url}' is not a http URL")
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310  (checked above)
        text: str = answer.read().decode()
    return text


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two scrapes."""

    before: Scrape
    after: Scrape

    @property
    def seconds(self) -> float:
        """How long it was."""
        return max(self.after.at - self.before.at, 1e-9)

    def growth(self, name: str, **wanted: str) -> float:
        """By how much counters have grown; what they show when the server was started anew meanwhile."""
        before, after = self.before.total(name, **wanted), self.after.total(name, **wanted)
        return after - before if after >= before else after

    def rate(self, name: str, **wanted: str) -> float:
        """Growth a second."""
        return self.growth(name, **wanted) / self.seconds

    def ratio(self, part: float, whole: float) -> float:
        """Not a number when there was nothing."""
        return part / whole if whole else math.nan

    def quantile(self, share: float, name: str, **wanted: str) -> float:
        """A percentile of a histogram's new observations, as histogram_quantile has it: linear within a bucket."""
        bounds = self.after.values(f"{name}_bucket", "le", **wanted)
        counted = [(float(le), self.growth(f"{name}_bucket", le=le, **wanted)) for le in bounds]
        counted.sort()
        if not counted or not counted[-1][1]:
            return math.nan
        rank = share * counted[-1][1]
        low, below = 0.0, 0.0
        for bound, count in counted:
            if count >= rank:
                if bound == math.inf or count == below:
                    return low
                return low + (bound - low) * (rank - below) / (count - below)
            low, below = bound, count
        return low
