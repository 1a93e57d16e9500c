"""`kairos demo`: the main job from end to end, in one command."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import rich_click as click
from rich.console import Console

ROOT: Final = Path(__file__).resolve().parents[2]
READY: Final = re.compile(r"kairos is ready: gRPC (?P<url>\S+?),")


@click.command()
@click.option("--verbose", is_flag=True, help="Show the server's log lines, too.")
def demo(verbose: bool) -> None:
    """Start a server with the example models, send it real images, print how it did, and stop it.

    Needs a checkout with its `examples` folder, and the `examples` extra.
    """
    script = ROOT / "examples" / "demo.py"
    if not script.exists():
        raise click.ClickException(f"there is no {script}: run this from a checkout of Kairos")
    with serving(ROOT / "examples" / "models", verbose=verbose) as url:
        status = subprocess.run([sys.executable, str(script), "--url", url], check=False).returncode
    sys.exit(status)


@contextmanager
def serving(repository: Path, *, verbose: bool) -> Iterator[str]:
    """A server process on free ports, with its address; drained at the end of the block."""
    console = Console(stderr=True, highlight=False)
    command = [sys.executable, "-m", "server", "serve", "--model-repository", str(repository)]
    command += ["--grpc-port", "0", "--metrics-port", "0", "--log-format", "text"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        lines = process.stderr
        assert lines is not None
        try:
            heard: list[str] = []
            for line in lines:
                heard.append(line)
                if verbose:
                    console.print(line, end="")
                if found := READY.search(line):
                    yield found["url"]
                    break
            else:
                console.print("".join(heard), end="")
                raise click.ClickException("the server did not start")
        finally:
            process.send_signal(signal.SIGTERM)
            rest = lines.read()
            if verbose:
                console.print(rest, end="")
    if process.returncode != 0:
        console.print(rest, end="")
        raise click.ClickException(f"the server ended with status {process.returncode}")
