"""Kairos beside its peers, in one run on one machine: `make peers`, or python -m loadtest.peers [--quick] [--write]."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import rich_click as click
from rich.console import Console

from loadtest.load.once import machine
from loadtest.peers import models
from loadtest.peers.cells import Cell, Listener, Options, deadlines_ms, limits, measure
from loadtest.peers.page import Study, write
from loadtest.peers.servers import HOME, PEERS, Peer, install

_console = Console(stderr=True, highlight=False)
_SAME = ("onnxruntime",)
"""The peers get the versions of these that the project has itself."""


def _list(of: Sequence[str]) -> click.ParamType[list[str]]:
    class Names(click.ParamType[list[str]]):
        name = "list"

        def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
            chosen = value.split(",")
            for each in chosen:
                if each not in of:
                    self.fail(f"{each!r} is none of {', '.join(of)}", param, ctx)
            return chosen

    return Names()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--peers", type=_list(list(PEERS)), default=",".join(PEERS), show_default=True, help="Which servers.")
@click.option("--models", "names", type=_list(list(models.MODELS)), default=",".join(models.MODELS), show_default=True)
@click.option("--callers", default="1,8,64", show_default=True, help="Of the closed loops.")
@click.option("--loads", default="0.5,0.9,1.5,2.5", show_default=True, help="Of the open loops; empty: none.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="In which the servers take turns.")
@click.option("--closed-seconds", type=float, default=3.0, show_default=True)
@click.option("--open-seconds", type=float, default=4.0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of ONNX Runtime in each server.")
@click.option("--quick", is_flag=True, help="A look: one round, a second each, two loads.")
@click.option("--json", "path", type=click.Path(path_type=Path), default=Path("build/peers.json"), show_default=True)
@click.option("--write", "writes", is_flag=True, help="Put figures and picture into docs/performance.md.")
@click.option("--only-write", is_flag=True, help="Do so with what an earlier run left in the JSON file.")
@click.option("--only-install", is_flag=True, help="Install the peers, and no more.")
def main(  # noqa: PLR0913 - as many as there are options
    *,
    peers: list[str],
    names: list[str],
    callers: str,
    loads: str,
    rounds: int,
    closed_seconds: float,
    open_seconds: float,
    threads: int,
    quick: bool,
    path: Path,
    writes: bool,
    only_write: bool,
    only_install: bool,
) -> None:
    """Measure Kairos, Triton, MLServer, TorchServe and a bare script, one at a time, with the same files and client."""
    if only_write:
        write(Study.of(json.loads(path.read_text())))
        return
    chosen = [PEERS[name] for name in peers]
    for peer in chosen:
        _console.print(f"installing {peer.name} ..." if peer.home else f"{peer.name} needs no environment of its own")
        try:
            install(peer, {name: metadata.version(name) for name in _SAME})
        except RuntimeError as error:
            raise click.ClickException(str(error)) from error
    if only_install:
        return
    options = Options(
        models=names,
        callers=[int(each) for each in callers.split(",")],
        loads=[float(each) for each in loads.split(",") if each],
        closed_s=closed_seconds,
        open_s=open_seconds,
        threads=threads,
    )
    if quick:
        rounds, options = 1, dataclasses.replace(options, closed_s=1.0, open_s=1.5, loads=options.loads[::2])
    study = _study(chosen, options, rounds)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(study), indent=1) + "\n")
    if writes:
        write(study)


def _study(peers: Sequence[Peer], options: Options, rounds: int) -> Study:
    began = time.monotonic()
    cells: list[Cell] = []
    failures: list[str] = []

    def told(cell: Cell) -> None:
        cells.append(cell)
        which = f"{cell.callers:3} callers" if cell.callers else f"load {cell.load:g}"
        figures = (
            f"asked {cell.asked_per_s:8,.0f}/s  answered {cell.answers_per_s:8,.0f}/s"
            f"  in time {cell.good_per_s:8,.0f}/s  p50 {cell.p50_ms:8.2f} ms  CPU {cell.cpu_us:8.0f} us"
        )
        faults = "; ".join(cell.faults)
        _console.print(f"{cell.peer:22} {cell.model:9} {which:12} {figures}  {faults}", soft_wrap=True)

    def failed(peer: Peer, number: int, model: str, error: Exception) -> None:
        """One that breaks down does not stop the others."""
        failures.append(f"{peer.name}, {model}, round {number + 1}: {str(error).splitlines()[0]}")
        _console.print(f"[bold red]{peer.name} broke down:[/] {error}")

    with tempfile.TemporaryDirectory() as name:
        files = models.write(Path(name), options.models)
        found = limits(files, options)
        deadlines = {name: deadlines_ms(models.MODELS[name], found[name]) for name in options.models}
        for number in range(rounds):
            _console.print(f"round {number + 1} of {rounds}, after {(time.monotonic() - began) / 60:.1f} minutes")
            turned = [*peers[number % len(peers) :], *peers[: number % len(peers)]]
            for peer in turned:
                measure(peer, files, deadlines, options, number, Listener(told, partial(failed, peer, number)))
    return Study(
        machine=machine(),
        command=" ".join(["python -m loadtest.peers", *sys.argv[1:]]),
        at=datetime.now(UTC).date().isoformat(),
        minutes=(time.monotonic() - began) / 60,
        versions={peer.name: _versions(peer) for peer in peers},
        threads=options.threads,
        limits=found,
        deadlines={name: list(each) for name, each in deadlines.items()},
        cells=cells,
        failures=failures,
    )


_TOLD = ("kairos", "nvidia-pytriton", "mlserver", "torchserve", "grpcio", "onnxruntime", "numpy")


def _versions(peer: Peer) -> list[str]:
    """What its environment holds, of the packages that matter."""
    python = str(HOME / peer.home / "bin/python") if peer.home else sys.executable
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {each["name"].lower(): each["version"] for each in json.loads(listed.stdout)}
    own = {"bare grpc.aio": {"kairos"}}.get(peer.name, set())
    return [f"{name} {found[name]}" for name in _TOLD if name in found and name not in own]


if __name__ == "__main__":
    main(prog_name="python -m loadtest.peers")
