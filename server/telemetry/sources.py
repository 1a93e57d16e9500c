"""Metrics of the sources of models, where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Final, Protocol

from prometheus_client.core import Metric

from server.telemetry.families import counter, gauge

_LABELS: Final = ("source",)


class SourceStatistics(Protocol):
    """What a source says of itself."""

    @property
    def syncs(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def fetched_bytes(self) -> int: ...
    @property
    def fetched_files(self) -> int: ...
    @property
    def refused(self) -> Sized: ...


def source_metrics(sources: Mapping[str, SourceStatistics]) -> Iterator[Metric]:
    """How often sources were looked at, what came of it, and what is not taken."""
    rows = [((name,), found) for name, found in sources.items()]
    looks = [(labels, found.syncs) for labels, found in rows]
    yield counter("kairos_source_looks", "Looks at a source of models.", looks, _LABELS)
    failed = [(labels, found.failures) for labels, found in rows]
    yield counter("kairos_source_failures", "Looks that the source did not answer.", failed, _LABELS)
    files = [(labels, found.fetched_files) for labels, found in rows]
    yield counter("kairos_source_fetched_files", "Files fetched from a source.", files, _LABELS)
    size = [(labels, found.fetched_bytes) for labels, found in rows]
    yield counter("kairos_source_fetched_bytes", "Bytes fetched from a source.", size, _LABELS)
    refused = [(labels, len(found.refused)) for labels, found in rows]
    yield gauge("kairos_source_refused", "Versions that a source has and that are not taken.", refused, _LABELS)
