"""From a study to docs/sizing.md: the worksheet's coefficients, the tables, and the limits with their figures."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from loadtest.marks import put
from loadtest.sizing.estimate import Wanted, words, worked
from loadtest.sizing.fits import TOGETHER, by_size, coefficients, shared
from loadtest.sizing.parts import BUSY, DEADLINE_MS
from loadtest.sizing.picture import draw
from loadtest.sizing.study import LARGE_KIB, Load, Study
from loadtest.support import ROOT

PAGE: Final = ROOT / "docs" / "sizing.md"
IMAGE: Final = ROOT / "docs" / "images" / "sizing.png"
EXAMPLE: Final = Wanted(
    requests_per_s=3000, payload_kib=150, answer_kib=4, engine_ms=2, models=3, weights_mib=300,
)  # fmt: skip
PAYS: Final = 0.8
"""Shared memory pays where it costs at most this share of the same bytes in a message."""


def number(value: float | None, digits: int | None = None) -> str:
    """With as many digits as matter."""
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def marked(load: Load, text: str) -> str:
    """(!) where the generator says that it was the limit."""
    return f"{text} (!)" if load.faults else text


Columns = Sequence[tuple[str, Callable[[Load], str]]]
_RATE: Final = ("answers/s", lambda load: marked(load, number(load.answers_per_s, 0)))
_CPU: Final = ("CPU us", lambda load: number(load.cpu_us))
_LOOP: Final = ("of it the event loop", lambda load: number(load.loop_us))
_ROWS: Final = ("rows in a batch", lambda load: number(load.rows_per_batch))
_P50: Final = ("p50 ms", lambda load: number(load.p50_ms))
_P99: Final = ("p99 ms", lambda load: number(load.p99_ms))


def by(what: str, loads: Sequence[Load], columns: Columns) -> list[str]:
    """A line for each of the loads."""
    heads = [what, *(head for head, _ in columns)]
    return table(heads, ([f"{load.x:g}", *(cell(load) for _, cell in columns)] for load in loads))


def worksheet(study: Study) -> list[str]:
    """The coefficients, and the example by the same code that `--for` runs."""
    of = coefficients(study)
    rows = [
        (f"`u`, CPU of a small request in a busy process ({TOGETHER} share a turn)", f"{of.busy_us:.0f} us"),
        (
            "`c_in`, `c_out`, for each KiB of a request and of an answer",
            f"{of.in_us_per_kib:.2f}, {of.out_us_per_kib:.2f} us",
        ),
        ("with TLS, in addition: for each request, for each KiB", f"{of.tls_us:.0f} us, {of.tls_us_per_kib:.2f} us"),
        ("`base`, memory of a process", f"{of.base_mib:.0f} MiB"),
        ("`m`, memory of a model beside its file", f"{of.model_mib:.2f} MiB"),
        ("`k`, memory of a connection; with TLS", f"{of.connection_kib:.0f} KiB; {of.tls_connection_kib:.0f} KiB"),
    ]
    return [
        *table(["coefficient", "measured"], rows),
        "",
        (
            f"Example: {EXAMPLE.requests_per_s:,.0f} requests/s of {EXAMPLE.payload_kib:g} KiB, answers of "
            f"{EXAMPLE.answer_kib:g} KiB, {EXAMPLE.engine_ms:g} ms of engine CPU each, deadlines of "
            f"{EXAMPLE.deadline_ms:g} ms, {EXAMPLE.connections:g} connections, {EXAMPLE.models:g} models of "
            f"{EXAMPLE.weights_mib:g} MiB together."
        ),
        "",
        *worked(EXAMPLE, of),
        "",
        "The same by command:",
        "",
        "```console",
        f"$ python -m loadtest.sizing --for {' '.join(words(EXAMPLE))}",
        "```",
    ]


def tables(study: Study) -> list[str]:
    """All figures."""
    how = (
        f"`{study.command}`, {study.at}, {study.minutes:.0f} minutes. Machine: {study.machine}. The client runs on it, "
        "too. (!) marks figures of which the generator says that it was the limit."
    )
    sections = (_callers, _payload, _latency, _connections, _models, _several, _features)
    return [how, *(line for section in sections for line in ("", *section(study)))]


def _callers(study: Study) -> list[str]:
    loads = study.pick("callers")
    fit = shared(loads)
    how = (
        "Closed loops on a tiny model. CPU of a request of which k share a turn of the event loop and an execution: "
        f"**{number(fit.fixed)} us + {number(fit.slope)} us / k**, within {fit.worst:.0%} of each line."
    )
    columns = (_RATE, _CPU, _LOOP, _ROWS, ("by the formula", _formula(loads)), _P50, _P99)
    return ["### Callers", "", how, "", *by("callers", loads, columns)]


def _formula(loads: Sequence[Load]) -> Callable[[Load], str]:
    fit = shared(loads)
    return lambda load: number(fit.at(1 / load.rows_per_batch) if load.rows_per_batch else None)


def _payload(study: Study) -> list[str]:
    messages, mapped = study.pick("payload", "message"), {load.x: load for load in study.pick("payload", "shared")}
    (answer,) = study.pick("payload", "answer")
    fit = by_size(messages)
    columns = (
        _RATE, _CPU, ("us/KiB", lambda load: number(load.cpu_us / load.x)),
        ("CPU us in shared memory", lambda load: number(mapped[load.x].cpu_us)),
        ("answers/s", lambda load: marked(mapped[load.x], number(mapped[load.x].answers_per_s, 0))),
    )  # fmt: skip
    how = (
        "8 callers, so much in and 16 bytes out; the model does next to nothing. CPU of a request: "
        f"**{number(fit.fixed)} us + {number(fit.slope)} us for each KiB**, within {fit.worst:.0%} of each line. "
        f"{LARGE_KIB} KiB out in place of in: {number(answer.cpu_us)} us."
    )
    return ["### Payload", "", how, "", *by("KiB in", messages, columns)]


def _latency(study: Study) -> list[str]:
    (top,) = study.pick("capacity")
    deadline = {load.x: load for load in study.pick("load", "with")}

    def used(load: Load) -> str:
        return number(load.cpu_us * load.x * top.answers_per_s / 1e6, 2)

    columns = (
        ("asked/s", lambda load: marked(load, number(load.x * top.answers_per_s, 0))), ("cores used", used), _P50, _P99,
        (f"p50 with {DEADLINE_MS} ms", lambda load: number(deadline[load.x].p50_ms)),
        ("p99", lambda load: number(deadline[load.x].p99_ms)),
        ("refused or late", lambda load: f"{deadline[load.x].refused:.1%}"),
    )  # fmt: skip
    how = (
        f"Poisson arrivals on a tiny model, as shares of the {number(top.answers_per_s, 0)} answers/s that {BUSY} "
        f"callers in a closed loop got; without deadlines, and with {DEADLINE_MS} ms. Cores used do not grow in "
        "proportion: at little load few requests share a turn, and each costs more."
    )
    return ["### Load", "", how, "", *by("of capacity", study.pick("load", "without"), columns)]


def _connections(study: Study) -> list[str]:
    beside = {load.x: load for load in study.pick("beside idle")}
    of = coefficients(study)
    rows = [
        [
            "TLS" if idle.tls else "plain", f"{idle.connections:,}", number(idle.rss_kib / 1024),
            number(idle.opening_us) if idle.connections else "-", f"{idle.cores:.3f}",
            "-" if idle.tls else number(beside[idle.connections].cpu_us),
        ]
        for idle in study.idles
    ]  # fmt: skip
    heads = ["", "idle connections", "memory MiB", "CPU us to open one", "cores used", "CPU us a request of 8 callers"]
    over = by("connections", study.pick("over"), (_RATE, _CPU, _ROWS, _P50, _P99))
    how = f"One takes **{number(of.connection_kib)} KiB**, with TLS **{number(of.tls_connection_kib)} KiB**."
    spread = f"{BUSY} callers, spread over more connections:"
    return ["### Connections", "", how, "", *table(heads, rows), "", spread, "", *over]


def _models(study: Study) -> list[str]:
    of, loads = coefficients(study), {load.x: load for load in study.pick("models")}
    rows = [
        [
            f"{each.models}", number(each.rss_kib / 1024), number(each.ready_s), f"{each.threads}",
            number(loads[each.models].cpu_us), number(loads[each.models].rows_per_batch),
            number(loads[each.models].answers_per_s, 0), number(each.scrape_ms), number(each.scrape_kib),
        ]
        for each in study.models
    ]  # fmt: skip
    heads = [
        "models", "memory MiB", "ready after s", "threads", "CPU us", "rows in a batch", "answers/s", "/metrics ms",
        "/metrics KiB",
    ]  # fmt: skip
    how = (
        f"Copies of a tiny model: each takes **{number(of.model_mib)} MiB** beside its file and "
        f"**{number(of.model_load_s * 1e3)} ms** to load. {BUSY} callers draw one of them for each request: what is "
        "spread over many models meets in fewer batches."
    )
    return ["### Models", "", how, "", *table(heads, rows)]


def _several(study: Study) -> list[str]:
    lone = {load.x: load for load in study.pick("lone call")}
    instances = by("instances", study.pick("instances"), (("a lone call, ms", _alone(lone)), _RATE, _CPU, _ROWS))
    processes = by("processes", study.pick("processes"), (_RATE, _CPU, ("the idler one", _idler), _P50, _P99))
    how = "Instances of one thread each, 32 callers, a model whose rows cost the same alone and in a batch:"
    sharing = f"Processes that share a port (`--reuse-port`), tiny model, {BUSY} callers on 16 connections:"
    return ["### Instances and processes", "", how, "", *instances, "", sharing, "", *processes]


def _alone(lone: Mapping[float, Load]) -> Callable[[Load], str]:
    return lambda load: number(lone[load.x].p50_ms)


def _idler(load: Load) -> str:
    return f"{load.least_share:.0%} of its fair share"


def _features(study: Study) -> list[str]:
    rows = [
        [
            price.name, number(price.without_us), f"**{price.ratio:.2f}**",
            f"{min(price.ratios):.2f} to {max(price.ratios):.2f}", f"{len(price.ratios)}",
        ]
        for price in study.prices
    ]  # fmt: skip
    how = (
        "CPU of a request with a feature over the same without it; the servers take turns, each turn gives a ratio. "
        f"Small requests of 32 callers; TLS by grpc.aio's client, 16 callers, large: {LARGE_KIB} KiB of 4 callers."
    )
    return [
        "### Features",
        "",
        how,
        "",
        *table(["feature", "without, us", "ratio, median", "all turns", "turns"], rows),
    ]


def limits(study: Study) -> list[str]:
    """Where the model ends, with the figures that say so."""
    of = coefficients(study)
    most = max(load.answers_per_s for load in study.pick("callers"))
    largest, idles = study.models[-1], [idle for idle in study.idles if not idle.tls]
    greeting = [idle.opening_us for idle in study.idles if idle.tls][-1]
    loop = (
        f"- **One event loop a process, and one core for it**: at most 1 s / {of.busy_us:.0f} us = "
        f"{number(1e6 / of.busy_us, 0)} small requests/s by the formula, {number(most, 0)} measured "
        "beside the client. Beyond that: more processes on the port, or more pods."
    )
    payload = f"- **Payload**: {number(1e6 / (of.in_us_per_kib * 1024), 0)} MiB/s fill that core. {_mapped(study)}"
    tls = (
        f"- **TLS**: {of.tls_us:.0f} us a request and {of.tls_us_per_kib:.2f} us a KiB more on the same core, and "
        f"{number(greeting)} us for each new connection: clients must keep theirs."
    )
    connections = (
        f"- **Connections**: measured up to {max(idle.connections for idle in idles):,} idle ones. `--max-connections` "
        "(8,192) and the limit on open files bound them."
    )
    models = (
        f"- **Models**: measured up to {largest.models}. /metrics is {number(largest.scrape_kib, 0)} KiB there and "
        f"takes {number(largest.scrape_ms, 0)} ms of the same process: scrape seldom, or spread them over deployments."
    )
    return [loop, payload, tls, connections, models]


def _mapped(study: Study) -> str:
    """From which size on shared memory pays."""
    mapped = {load.x: load.cpu_us for load in study.pick("payload", "shared")}
    least = None
    for load in reversed(study.pick("payload", "message")):
        if mapped[load.x] > PAYS * load.cpu_us:
            break
        least = load.x
    if least is None:
        return "Shared memory on the same host saves less than a fifth of it at the largest size measured."
    return (
        f"On the same host, shared memory saves a fifth of it and more from {least:g} KiB on (of the sizes measured)."
    )


def wrapped(line: str) -> str:
    """Prose in lines of 120; tables, headings and commands as they are."""
    if line.startswith(("|", "#", "$", "```")):
        return line
    indent = " " * (2 if line.startswith("- ") else 3 if line[:2].rstrip(".").isdigit() else 0)
    return textwrap.fill(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def write(study: Study, page: Path = PAGE, image: Path = IMAGE) -> None:
    """Put all of it into the page and draw the picture. ValueError where marks or parts of the study are missing."""
    text = page.read_text()
    for name, lines in (("worksheet", worksheet(study)), ("figures", tables(study)), ("limits", limits(study))):
        text = put(text, f"sizing {name}", "\n".join(wrapped(line) for line in lines))
    draw(study, image)
    page.write_text(text)
