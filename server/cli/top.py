"""`kairos top`: what a running server does, live, from its metrics port."""

from __future__ import annotations

import math
import re
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import rich_click as click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from server.telemetry.scrape import Interval, Scrape, fetch, read_scrape

HISTORY: Final = 16
"""Intervals in a line of recent rates."""
PICTURE_COLUMNS: Final = 150
BARS: Final = "▁▂▃▄▅▆▇█"
WITHOUT_ANSWER: Final = ("shed", "expired", "cancelled", "invalid", "error")
_REMOTE_FONTS: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""A picture should not ask another host for its letters."""
_GONE: Final = "the server does not answer; waiting for it"


class Recent:
    """The last request rates of each model version, for the lines in the table."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, str], deque[float]] = {}

    def add(self, now: Interval) -> None:
        """Take the rates of an interval in."""
        for name, version in versions(now.after):
            rates = self._rates.setdefault((name, version), deque(maxlen=HISTORY))
            rates.append(now.rate("kairos_requests_total", model=name, version=version))

    def line(self, name: str, version: str) -> str:
        """Bars up to the highest of them."""
        rates = self._rates.get((name, version), deque())
        highest = max(rates, default=0.0) or 1.0
        return "".join(BARS[min(len(BARS) - 1, int(rate / highest * len(BARS)))] for rate in rates)


@click.command()
@click.option(
    "--url",
    default="http://127.0.0.1:8002/metrics",
    show_default=True,
    envvar="KAIROS_METRICS_URL",
    help="The server's metrics port.",
)
@click.option("--interval", default=2.0, show_default=True, type=click.FloatRange(0.1), help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Print one interval and leave.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="With --once: draw it to this file, too.")
def top(url: str, interval: float, once: bool, svg: Path | None) -> None:
    """Show the models of a running server: rates, goodput, percentiles, batches, engines. Ctrl-C ends it."""
    try:
        before = look(url)
    except (OSError, ValueError) as error:
        Console(stderr=True).print(f"[bold red]{url} does not answer:[/] {error}", highlight=False)
        sys.exit(1)
    recent = Recent()
    if once:
        time.sleep(interval)
        now = Interval(before, look(url))
        recent.add(now)
        draw(picture(now, recent), svg)
        return
    with Live(screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                try:
                    after = look(url)
                except (OSError, ValueError):
                    live.update(Text(_GONE, style="bold red"), refresh=True)
                    continue
                now = Interval(before, after)
                recent.add(now)
                live.update(picture(now, recent), refresh=True)
                before = after
        except KeyboardInterrupt:
            return


def look(url: str) -> Scrape:
    """One scrape. Raises OSError or ValueError."""
    return read_scrape(fetch(url, timeout_s=5.0), time.monotonic())


def draw(content: RenderableType, svg: Path | None) -> None:
    """Print it, and export it as a picture."""
    console = Console(record=svg is not None, width=PICTURE_COLUMNS if svg is not None else None)
    console.print(content)
    if svg is not None:
        drawn = console.export_svg(title="kairos top")
        svg.write_text(_REMOTE_FONTS.sub("", drawn))


def picture(now: Interval, recent: Recent) -> RenderableType:
    """Everything on one page."""
    server = Panel(_server(now), title=_title(now.after), title_align="left", box=box.ROUNDED)
    return Group(server, _models(now, recent))


def versions(scrape: Scrape) -> list[tuple[str, str]]:
    """Loaded model versions, in the order of their exposition."""
    names = (name for name in scrape.values("kairos_requests_total", "model") if name)
    return [(name, v) for name in names for v in scrape.values("kairos_requests_total", "version", model=name)]


def _title(after: Scrape) -> str:
    release = ", ".join(after.values("kairos_info", "release")) or "?"
    state = "[green]serving[/]" if after.total("kairos_serving") else "[red]not serving[/]"
    return f"kairos {release}  {state}"


def _server(now: Interval) -> Table:
    after = now.after
    facts: dict[str, str] = {
        "up": _seconds(time.time() - after.total("process_start_time_seconds")),
        "requests/s": f"{now.rate('kairos_requests_total'):,.0f}",
        "CPU": f"{now.rate('process_cpu_seconds_total'):.2f} cores",
        "memory": _bytes(after.total("process_resident_memory_bytes")),
        "loop lag p99": _seconds(now.quantile(0.99, "kairos_event_loop_lag_seconds")),
        "connections": f"{after.total('kairos_connections'):,.0f}",
        "in": f"{_bytes(now.rate('kairos_received_bytes_total'))}/s",
        "out": f"{_bytes(now.rate('kairos_sent_bytes_total'))}/s",
    } | _extras(now)
    table = Table.grid(padding=(0, 3), expand=False)
    for _ in facts:
        table.add_column(justify="right")
    table.add_row(*(f"[dim]{name}[/]" for name in facts))
    table.add_row(*facts.values())
    return table


def _extras(now: Interval) -> dict[str, str]:
    """What not every server has."""
    after = now.after
    extras: dict[str, str] = {}
    failed = after.total("kairos_model_failed")
    if failed:
        extras["broken versions"] = f"[red]{failed:.0f}[/]"
    if limit := after.total("kairos_cache_limit_bytes"):
        extras["cache"] = f"{after.total('kairos_cache_bytes') / limit:.0%} full"
    for gpu in after.values("kairos_gpu_utilization_ratio", "gpu"):
        used = after.total("kairos_gpu_memory_used_bytes", gpu=gpu)
        extras[f"GPU {gpu}"] = f"{after.total('kairos_gpu_utilization_ratio', gpu=gpu):.0%}, {_bytes(used)}"
    return extras


def _models(now: Interval, recent: Recent) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    for heading in ("model", "recent"):
        table.add_column(heading, no_wrap=True)
    numbers = ("req/s", "in time", "p50", "p99", "wait p99", "rows", "in flight", "waiting", "engines", "hits")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unanswered/s", min_width=24)
    for name, version in versions(now.after):
        table.add_row(f"[bold]{name}[/]:{version}", f"[cyan]{recent.line(name, version)}[/]", *_row(now, name, version))
    return table


def _row(now: Interval, name: str, version: str) -> list[str]:
    own = {"model": name, "version": version}
    requests = now.growth("kairos_requests_total", **own)
    goodput = now.ratio(now.growth("kairos_requests_total", outcome="in_deadline", **own), requests)
    rows = now.ratio(now.growth("kairos_batch_rows_sum", **own), now.growth("kairos_batch_rows_count", **own))
    answers = now.growth("kairos_answers_total", **own)
    hits = now.ratio(answers - now.growth("kairos_answers_total", origin="engine", **own), answers)
    after = now.after
    return [
        f"{requests / now.seconds:,.0f}",
        _goodput(goodput),
        _seconds(now.quantile(0.5, "kairos_request_seconds", **own)),
        _seconds(now.quantile(0.99, "kairos_request_seconds", **own)),
        _seconds(now.quantile(0.99, "kairos_queue_seconds", **own)),
        "" if math.isnan(rows) else f"{rows:.1f}",
        f"{after.total('kairos_requests_in_flight', **own):.0f}",
        f"{after.total('kairos_queue_requests', **own):.0f}",
        _engines(now, own),
        f"{hits:.0%}" if hits > 0 else "",
        "  ".join(
            f"[red]{outcome}[/] {rate:,.1f}"
            for outcome in WITHOUT_ANSWER
            if (rate := now.rate("kairos_requests_total", outcome=outcome, **own))
        ),
    ]


def _engines(now: Interval, own: Mapping[str, str]) -> str:
    count = now.after.total("kairos_engines", **own)
    missing = now.after.total("kairos_engines", state="missing", **own)
    busy = now.ratio(now.rate("kairos_batch_seconds_sum", **own), count)
    told = f"{count:.0f} at {0.0 if math.isnan(busy) else busy:.0%}"
    return f"{told} [red]{missing:.0f} missing[/]" if missing else told


def _goodput(share: float) -> str:
    if math.isnan(share):
        return ""
    colour = "green" if share >= 0.99 else "yellow" if share >= 0.95 else "red"
    return f"[{colour}]{math.floor(share * 1000) / 10:.1f} %[/]"


def _seconds(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1.0:
        return f"{seconds * 1e3:.1f} ms"
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
