"""`kairos feedback`: tell a running server how its predictions turned out, look at it, take it away as Parquet."""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO

import rich_click as click
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from server.cli.channel import Address, fail, with_server
from server.cli.options.models import default_state_dir
from server.pb import feedback_pb2 as pb
from server.pb.feedback_pb2_grpc import FeedbackStub
from server.watch.database import reader
from server.watch.outcomes import FILE

FIELDS: Final = frozenset({"model", "id", "row", "label", "metric", "value", "time"})
_BATCH: Final = 500
_timeout = click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for it.")
_EXPORT: Final = """
SELECT p.model, p.version, p.id, p.row, p.at AS predicted_at, p.predicted, p.label AS predicted_label, p.confidence,
       nullif(o.metric, '') AS metric, nullif(o.label, '') AS label,
       CASE WHEN o.metric <> '' THEN o.value END AS value, o.at AS outcome_at, o.received AS received_at
FROM predictions p LEFT JOIN outcomes o ON o.model = p.model AND o.id = p.id AND o.row = p.row
WHERE ? = '' OR p.model = ? ORDER BY p.at, p.model, p.id, p.row, o.metric
"""
_EXPORT_ROWS: Final = 50_000


class BadOutcome(ValueError):
    """A line of the input that says nothing usable; the text names it."""


@click.group()
def feedback() -> None:
    """Tell a running server how its predictions turned out, and see how its models do by that."""


@feedback.command()
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option("--model", default="", help="The model of lines that name none.")
@with_server
@_timeout
def report(file: TextIO, model: str, server: Address, timeout: float) -> None:
    """Send outcomes from a CSV file with a header, or from a file with one JSON object a line; `-` is standard input.

    Columns: `model`, `id` (of the request), `row`, `label`, `metric`, `value`, `time` (seconds since 1970, or ISO 8601
    with its zone). Each line needs an id and a label or a metric with its value. A file may be sent again: what the
    server knows already is only counted.

    **Examples**

    - `kairos feedback report outcomes.csv --model digits`
    - `echo '{"model": "digits", "id": "a1", "label": "7"}' | kairos feedback report -`
    """
    counts: Counter[str] = Counter()
    try:
        with server.calling(FeedbackStub) as stub:
            for batch in _batches(read_outcomes(file, model)):
                answer = stub.Report(pb.ReportRequest(outcomes=batch), timeout=timeout)
                counts.update({field.name: getattr(answer, field.name) for field in answer.DESCRIPTOR.fields})
    except (BadOutcome, UnicodeDecodeError, csv.Error) as error:
        fail(f"{file.name}: {error}; {sum(counts.values())} outcomes before it were sent")
    names = [field.name for field in pb.ReportResponse.DESCRIPTOR.fields]
    click.echo(f"{sum(counts.values())} outcomes: " + ", ".join(f"{counts[name]} {name}" for name in names))


@feedback.command()
@click.option("--model", default="", help="Only this model. Default: all.")
@with_server
@_timeout
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def status(model: str, server: Address, timeout: float, as_json: bool) -> None:
    """How much is kept, and accuracy, calibration and business metrics by the outcomes of the last day."""
    with server.calling(FeedbackStub) as stub:
        found = stub.Status(pb.FeedbackStatusRequest(model=model), timeout=timeout)
    if as_json:
        click.echo(json_format.MessageToJson(found, always_print_fields_with_no_presence=True))
        return
    console = Console(highlight=False)
    console.print(
        f"{found.predictions} predictions, {found.outcomes} outcomes ({found.pending} wait for their prediction), "
        f"{found.size_bytes / 1024:.0f} KiB; since the start {found.without_id} answers without an id, "
        f"{found.repeated_ids} with one that was used before, {found.dropped} dropped",
        soft_wrap=True,
    )
    table = Table("model", "version", "what", "n", "value", "with confidence", "with drift", box=None, pad_edge=False)
    for each in found.models:
        if each.labelled:
            table.add_row(each.model, each.version, "accuracy", str(each.labelled), f"{each.accuracy:.2%}")
            table.add_row("", "", "calibration error", "", f"{each.calibration_error:.4f}")
        for metric in each.metrics:
            ties = map(_correlation, (metric.confidence, metric.drift))
            table.add_row(each.model, each.version, metric.name, str(metric.samples), f"{metric.mean:.5g}", *ties)
    if found.models:
        console.print(table)


@feedback.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", default="", help="Only this model. Default: all.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_state_dir,
    envvar="KAIROS_STATE_DIR",
    show_default="~/.local/state/kairos",
    help="The server's; it may be running.",
)
def export(file: Path, model: str, state_dir: Path) -> None:
    """Write predictions and their outcomes to a Parquet file: one line for each outcome, or prediction without one."""
    try:
        rows = _export(state_dir / FILE, file, model)
    except OSError as error:
        fail(str(error))
    click.echo(f"{rows} lines in {file}")


def read_outcomes(file: TextIO, model: str = "") -> Iterator[pb.Outcome]:
    """Outcomes from CSV or JSON lines, told apart by the first character. Raises BadOutcome."""
    lines = (line for line in file if line.strip())
    first = next(lines, None)
    if first is None:
        return
    values: Iterator[tuple[int, dict[str, Any]]]
    values = _json_lines(first, lines) if first.lstrip().startswith("{") else _csv_lines(first, lines)
    for number, each in values:
        try:
            yield _outcome({"model": model, **{name: value for name, value in each.items() if value not in ("", None)}})
        except (ValueError, TypeError) as error:
            raise BadOutcome(f"outcome {number}: {error}") from error


def _csv_lines(first: str, rest: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, values in enumerate(csv.DictReader(_chain(first, rest)), 1):
        if None in values:
            raise BadOutcome(f"outcome {number} has more columns than the header")
        yield number, values


def _json_lines(first: str, rest: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_chain(first, rest), 1):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadOutcome(f"outcome {number} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise BadOutcome(f"outcome {number} is not a JSON object")
        yield number, values


def _chain(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _outcome(values: dict[str, Any]) -> pb.Outcome:
    if unknown := sorted(values.keys() - FIELDS):
        raise ValueError(f"unknown column '{unknown[0]}'; known are {', '.join(sorted(FIELDS))}")
    if not values.get("model"):
        raise ValueError("names no model; give --model")
    if not values.get("id"):
        raise ValueError("has no id")
    if ("metric" in values) != ("value" in values):
        raise ValueError("a metric and its value go together")
    if "metric" not in values and "label" not in values:
        raise ValueError("has neither a label nor a metric")
    return pb.Outcome(
        model=str(values["model"]),
        id=str(values["id"]),
        row=int(values.get("row", 0)),
        label=str(values.get("label", "")),
        metric=str(values.get("metric", "")),
        value=float(values.get("value", 0.0)),
        time=_time(values.get("time", 0.0)),
    )


def _time(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        at = datetime.fromisoformat(str(value))
        if at.tzinfo is None:
            raise ValueError(f"time '{value}' has no zone") from None
        return at.timestamp()


def _batches(outcomes: Iterable[pb.Outcome]) -> Iterator[list[pb.Outcome]]:
    batch: list[pb.Outcome] = []
    for each in outcomes:
        batch.append(each)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _export(database: Path, file: Path, model: str) -> int:
    try:
        pa: Any = importlib.import_module("pyarrow")
        pq: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise OSError("Parquet files need pyarrow: pip install 'kairos[capture]'") from error
    texts = ("model", "id", "predicted_label", "metric", "label")
    kinds = {"version": pa.int64(), "row": pa.int32(), "predicted": pa.int32()} | dict.fromkeys(texts, pa.string())
    part = file.with_name(f".{file.name}.part")
    count = 0
    with closing(reader(database)) as connection:
        cursor = connection.execute(_EXPORT, (model, model))
        names = [column[0] for column in cursor.description]
        schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in names])
        with pq.ParquetWriter(part, schema) as writer:
            while rows := cursor.fetchmany(_EXPORT_ROWS):
                columns = zip(*rows, strict=True)
                writer.write_table(
                    pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
                )
                count += len(rows)
    part.replace(file)
    return count


def _correlation(found: pb.Correlation) -> str:
    if math.isnan(found.value):
        return "-"
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}] n={found.samples}"
