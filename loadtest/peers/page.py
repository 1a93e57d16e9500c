"""From cells to tables and pictures: medians over rounds with their spread, and docs/performance.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtest.marks import put
from loadtest.peers.cells import Cell
from loadtest.peers.models import MODELS
from loadtest.peers.servers import PEERS, ROOT

PAGE: Final = ROOT / "docs" / "performance.md"
IMAGE: Final = ROOT / "docs" / "images" / "peers.png"
OURS: Final = "kairos"
_HOW: Final = (
    "Figures are medians of the rounds, ± half the distance from the least to the most; the best of a column is bold; "
    "(!) marks figures of which the generator says that it was the limit. CPU is that of all processes of a server, "
    "user and system, for each request sent. Open loops ask by a Poisson process at multiples of what the same server "
    "got through in closed loops, and every request has a deadline: gRPC's, or for Triton its parameter `timeout`."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything that one comparison found."""

    machine: str
    command: str
    at: str
    minutes: float
    versions: Mapping[str, Sequence[str]]
    threads: int
    limits: Mapping[str, Mapping[int, tuple[float, float]]]
    """By model and rows: rows a second, CPU microseconds a row."""
    deadlines: Mapping[str, Sequence[str]]
    cells: Sequence[Cell] = field(default_factory=list)
    failures: Sequence[str] = field(default_factory=list)
    """Which peers broke down in which round, and how."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Study:
        """As it was written to JSON."""
        cells = [Cell(**cell) for cell in data["cells"]]
        limits = {
            name: {int(rows): tuple(pair) for rows, pair in limit.items()} for name, limit in data["limits"].items()
        }
        return cls(**{**data, "cells": cells, "limits": limits})

    def peers(self) -> list[str]:
        """In the order of the tables."""
        present = {cell.peer for cell in self.cells}
        return [peer.name for peer in PEERS.values() if peer.name in present]

    def models(self) -> list[str]:
        present = {cell.model for cell in self.cells}
        return [name for name in MODELS if name in present]

    def pick(self, **wanted: object) -> list[Cell]:
        """The cells of all rounds with these fields."""
        return [cell for cell in self.cells if all(getattr(cell, key) == value for key, value in wanted.items())]


Get = Callable[[Cell], float]


def middle(cells: Iterable[Cell], get: Get) -> float:
    """The median over rounds; nan of nothing."""
    values = [get(cell) for cell in cells if not math.isnan(get(cell))]
    return statistics.median(values) if values else math.nan


def spread(cells: Sequence[Cell], get: Get) -> float:
    """Half of what lies between the least and the most of all rounds, as a share of the median."""
    values = [get(cell) for cell in cells if not math.isnan(get(cell))]
    middle_value = statistics.median(values) if values else 0.0
    return (max(values) - min(values)) / 2 / middle_value if middle_value else 0.0


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), "|---" * len(names) + "|"]


def table(study: Study, model: str, columns: Mapping[str, tuple[Mapping[str, object], Get, bool]]) -> list[str]:
    """A line for each server; a column is (which cells, what of them, whether more is better). The best is bold."""
    picked = {
        title: {peer: study.pick(peer=peer, model=model, **which) for peer in study.peers()}
        for title, (which, _, _) in columns.items()
    }
    best = {}
    for title, (_, get, more) in columns.items():
        values = [(middle(cells, get), peer) for peer, cells in picked[title].items()]
        known = [pair for pair in values if not math.isnan(pair[0])]
        best[title] = (max if more else min)(known)[1] if known else ""
    lines = _head(["server", *columns])
    for peer in study.peers():
        shown = []
        for title, (_, get, _) in columns.items():
            cells = picked[title][peer]
            text = _number(middle(cells, get))
            text = f"**{text}**" if best[title] == peer else text
            wide = spread(cells, get)
            shown.append(f"{text} ±{wide:.0%}" if wide >= 0.005 else text)
            if any(cell.faults for cell in cells):
                shown[-1] += " (!)"
        lines.append(_row([peer, *shown]))
    return lines


def closed_columns(study: Study, model: str) -> dict[str, tuple[Mapping[str, object], Get, bool]]:
    """Answers, latency and CPU by callers."""
    columns: dict[str, tuple[Mapping[str, object], Get, bool]] = {}
    callers = sorted({cell.callers for cell in study.pick(model=model) if cell.callers})
    for number in callers:
        which = {"callers": number}
        columns[f"{number} callers: answers/s" if number > 1 else "1 caller: answers/s"] = which, _answers, True
        columns["p50 ms" + " " * len(columns)] = which, _median, False
        columns["CPU us" + " " * len(columns)] = which, _cpu, False
    return columns


def _answers(cell: Cell) -> float:
    return cell.answers_per_s


def _in_time(cell: Cell) -> float:
    return cell.good_per_s


def _cpu(cell: Cell) -> float:
    return cell.cpu_us


def _median(cell: Cell) -> float:
    return cell.p50_ms


def _asked(cell: Cell) -> float:
    return cell.asked_per_s


def _share(cell: Cell) -> float:
    return cell.good_per_s / cell.capacity if cell.capacity else math.nan


def open_columns(study: Study, model: str) -> dict[str, tuple[Mapping[str, object], Get, bool]]:
    """Answers in time, a second and as a share of capacity, by load."""
    columns: dict[str, tuple[Mapping[str, object], Get, bool]] = {}
    for load in sorted({cell.load for cell in study.pick(model=model) if cell.load}):
        which = {"load": load}
        columns[f"load {load:g}: in time/s"] = which, _in_time, True
        columns["of capacity" + " " * len(columns)] = which, _share, True
    return columns


def losses(study: Study) -> list[str]:
    """Where a peer is ahead of us by more than both spreads, in words; nobody has to search the tables for it."""
    found = []
    for model in study.models():
        for columns in (closed_columns(study, model), open_columns(study, model)):
            heading = ""
            for title, (which, get, more) in columns.items():
                heading = title.partition(":")[0] if ":" in title else heading
                ours = study.pick(peer=OURS, model=model, **which)
                for peer in study.peers():
                    theirs = study.pick(peer=peer, model=model, **which)
                    if peer == OURS or not ours or not theirs:
                        continue
                    ratio = middle(theirs, get) / (middle(ours, get) or math.nan)
                    gain = ratio if more else 1 / ratio if ratio else math.nan
                    if gain > 1 + spread(ours, get) + spread(theirs, get) + 0.02:
                        what = title.strip() if ":" in title else f"{heading}: {title.strip()}"
                        found.append(f"{peer}, {model}, {what}: {gain:.2f} times as good")
    return found


def summary(study: Study) -> list[str]:
    """The picture and the one table at the top of the page."""
    most = max(cell.callers for cell in study.cells)
    first = study.models()[0]
    over = min((cell.load for cell in study.cells if cell.load > 1), default=0.0)
    lines = ["![Kairos beside its peers](images/peers.png)", ""]
    head = ["server", *(f"{model}: answers/s" for model in study.models()), f"{first}: server CPU per request"]
    head += [f"{model}: in time, asked {over:g} times that" for model in _telling(study) if over]
    lines += _head(head)
    for peer in study.peers():
        rates = [
            _number(middle(study.pick(peer=peer, model=model, callers=most), _answers)) for model in study.models()
        ]
        cpu = middle(study.pick(peer=peer, model=first, callers=most), _cpu)
        row = [f"**{peer}**" if peer == OURS else peer, *rates, f"{_number(cpu)} us"]
        for model in _telling(study) if over else ():
            cells = study.pick(peer=peer, model=model, load=over)
            row.append(f"{_number(middle(cells, _in_time))}/s, {middle(cells, _share):.0%} of it")
        lines.append(_row(row))
    how = (
        f"{most} callers, {study.threads} thread of ONNX Runtime for each server, the same ONNX files and client, on "
        f"{study.machine}. [How, and all figures](#beside-the-peers)."
    )
    return [*lines, "", how]


def section(study: Study) -> list[str]:
    """All figures."""
    rounds = len({cell.round for cell in study.cells})
    lines = [
        f"`{study.command}`, {study.at}, {study.minutes:.0f} minutes, {rounds} round(s); servers take turns in each.",
        f"Machine: {study.machine}. The client runs on it, too.",
        "",
        _HOW,
    ]
    for model in study.models():
        about = MODELS[model]
        limit = study.limits[model]
        bare = ", ".join(f"{_number(rate)} rows/s in batches of {rows}" for rows, (rate, _) in limit.items())
        lines += ["", f"### {model}: {about.about}", ""]
        lines += [
            f"ONNX Runtime alone in a process, {study.threads} thread: {bare}. Batches of up to {about.max_rows}.",
            "",
        ]
        lines += table(study, model, closed_columns(study, model))
        if any(cell.load for cell in study.pick(model=model)):
            lines += ["", f"Deadlines of {', '.join(study.deadlines[model])} ms, a third of the requests each:", ""]
            lines += table(study, model, open_columns(study, model))
    lines += ["", "Where a peer is ahead by more than the spread:", ""]
    lines += [f"- {loss}" for loss in losses(study)] or ["- nowhere"]
    if study.failures:
        lines += ["", "What broke down on the way:", "", *(f"- {failure}" for failure in study.failures)]
    lines += ["", "What is unfair to whom:", ""]
    lines += [f"- {peer.name}: {peer.unfair}" for peer in PEERS.values() if peer.name in study.peers()]
    lines += [
        "",
        "Versions: " + "; ".join(f"{name}: {', '.join(found)}" for name, found in study.versions.items()) + ".",
    ]
    return lines


def write(study: Study, page: Path = PAGE, image: Path = IMAGE) -> None:
    """Put both into the page, between their marks, and draw the picture. ValueError where there are no marks."""
    text = page.read_text()
    for name, lines in (("peers summary", summary(study)), ("peers", section(study))):
        text = put(text, name, "\n".join(lines))
    draw(study, image)
    page.write_text(text)


COLOURS: Final = {
    "kairos": "#0b6e4f",
    "triton": "#76b900",
    "triton, python backend": "#c0dc8a",
    "mlserver": "#3a6ea5",
    "torchserve": "#f18f01",
    "bare grpc.aio": "#8d99ae",
}


def draw(study: Study, path: Path) -> None:
    """CPU for a request of the smallest model, and answers in time by load. ImportError where matplotlib is missing."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (optional, and slow to import)

    figure = Figure(figsize=(13.5, 3.8), layout="constrained")
    models = _telling(study)
    left, *others = figure.subplots(1, 1 + len(models))
    peers, most = study.peers(), max(cell.callers for cell in study.cells)
    first = study.models()[0]
    cpu = [middle(study.pick(peer=peer, model=first, callers=most), _cpu) for peer in peers]
    bars = left.barh(peers[::-1], cpu[::-1], color=[COLOURS[peer] for peer in peers[::-1]])
    left.bar_label(bars, [f" {value:,.0f}" for value in cpu[::-1]], fontsize=9)
    left.set_title(f"server CPU for a request of {first}, {most} callers: us", fontsize=10)
    left.spines[["top", "right"]].set_visible(False)
    left.margins(x=0.15)
    for axes, model in zip(others, models, strict=True):
        for peer in peers:
            of_peer = [study.pick(peer=peer, model=model, load=load) for load in _loads(study, model)]
            asked = [middle(cells, _asked) for cells in of_peer]
            good = [middle(cells, _in_time) for cells in of_peer]
            axes.plot(asked, good, marker="o", color=COLOURS[peer], label=peer, linewidth=2.4 if peer == OURS else 1.4)
        axes.set_title(f"{model}: answered in time a second, by what is asked", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    others[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def _telling(study: Study) -> list[str]:
    """The models of the picture: the smallest, where the server is the limit, and the largest of batches that gain."""
    return list(dict.fromkeys([study.models()[0], "encoder" if "encoder" in study.models() else study.models()[-1]]))


def _loads(study: Study, model: str) -> list[float]:
    return sorted({cell.load for cell in study.pick(model=model) if cell.load})
