"""A study by a cost that is known: what the fits must find again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadtest.sizing.study import TLS, TLS_LARGE, Base, Idle, Load, Models, Price, Study

REQUEST_US, TURN_US, US_PER_KIB, OUT_US_PER_KIB = 60.0, 400.0, 1.5, 2.0
BASE_KIB, MODEL_KIB, CONNECTION_KIB, TLS_KIB = 120_000.0, 200.0, 6.0, 50.0


def load(part: str, x: float, **fields: Any) -> Load:
    base = {"answers_per_s": 1000.0, "cpu_us": 100.0, "loop_us": 90.0, "p50_ms": 1.0, "p99_ms": 5.0}
    return Load(part=part, x=x, **{**base, **fields})


def callers(counts: Sequence[int] = (1, 8, 64)) -> list[Load]:
    return [load("callers", n, cpu_us=REQUEST_US + TURN_US / n, rows_per_batch=float(n)) for n in counts]


def study(**changed: Any) -> Study:
    sizes = (0.25, 64, 4096)
    fields = {
        "machine": "a machine", "command": "python -m loadtest.sizing", "at": "2026-01-01", "minutes": 3.0,
        "base": [Base(rss_kib=BASE_KIB, pss_kib=90_000.0)],
        "loads": [
            *callers(),
            *(load("payload", kib, name="message", cpu_us=120 + US_PER_KIB * kib) for kib in sizes),
            *(load("payload", kib, name="shared", cpu_us=120.0) for kib in sizes),
            load("payload", 600, name="answer", cpu_us=120 + OUT_US_PER_KIB * 600),
            load("capacity", 64),
            *(load("load", x, name=name) for x in (0.5, 0.9) for name in ("without", "with")),
            *(load("beside idle", count) for count in (0, 1000)),
            *(load("over", count, rows_per_batch=8.0) for count in (1, 64)),
            *(load("models", count, rows_per_batch=2.0) for count in (1, 40)),
            *(load(part, count) for part in ("lone call", "instances", "processes") for count in (1, 2)),
        ],
        "idles": [
            Idle(connections=count, tls=tls, rss_kib=BASE_KIB + each * count, opening_us=80.0)
            for tls, each in ((False, CONNECTION_KIB), (True, TLS_KIB))
            for count in (0, 1000)
        ],
        "models": [
            Models(
                models=count, rss_kib=BASE_KIB + (MODEL_KIB + 2) * count, file_kib=2.0, ready_s=1 + 0.1 * count,
                threads=4, scrape_ms=5.0 * count, scrape_kib=18.0 * count,
            )
            for count in (1, 40)
        ],
        "prices": [
            Price(name=TLS, without_us=200.0, ratios=[1.2, 1.1, 1.3]),
            Price(name=TLS_LARGE, without_us=1000.0, ratios=[1.64]),
        ],
    }  # fmt: skip
    return Study(**{**fields, **changed})
