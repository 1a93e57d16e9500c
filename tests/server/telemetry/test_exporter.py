"""Scrapes: read on the loop, turned into text beside it."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.core import Metric

from server.telemetry.exporter import LoopCollector, start_exporter
from server.telemetry.families import gauge


def scrape(port: int, accept: str = "application/openmetrics-text") -> str:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return str(answer.read().decode())


def test_snapshots_are_taken_on_the_loop_and_the_rest_is_done_elsewhere() -> None:
    threads: dict[str, threading.Thread] = {}

    def source() -> Iterator[Metric]:
        threads["snapshot"] = threading.current_thread()

        def families() -> Iterator[Metric]:
            threads["families"] = threading.current_thread()
            yield gauge("kairos_test", "Text.", [((), 1.0)])

        return families()

    async def main() -> str:
        port, stop = start_exporter("127.0.0.1", 0, [source])
        try:
            return await asyncio.to_thread(scrape, port)
        finally:
            await asyncio.to_thread(stop)

    text = asyncio.run(main())
    assert "kairos_test 1.0" in text
    assert "process_cpu_seconds_total" in text
    assert text.endswith("# EOF\n")
    assert threads["snapshot"] is threading.main_thread()
    assert threads["families"] is not threading.main_thread()


def test_a_source_that_fails_fails_the_scrape_and_nothing_else() -> None:
    faults = [ValueError("once")]

    def source() -> Iterator[Metric]:
        if faults:
            raise faults.pop()
        return iter([gauge("kairos_test", "Text.", [((), 2.0)])])

    async def main() -> str:
        port, stop = start_exporter("127.0.0.1", 0, [source])
        try:
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(scrape, port)
            refused.value.close()
            return await asyncio.to_thread(scrape, port)
        finally:
            await asyncio.to_thread(stop)

    assert "kairos_test 2.0" in asyncio.run(main())


def test_a_scrape_gives_up_on_a_loop_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.telemetry.exporter.SCRAPE_S", 0.0)

    async def main() -> None:
        collector = LoopCollector([lambda: iter(())])
        with pytest.raises(TimeoutError):
            list(collector.collect())  # on the loop itself, which therefore cannot answer

    asyncio.run(main())
