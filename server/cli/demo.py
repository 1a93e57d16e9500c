"""`kairos demo`: the main job from end to end, in one command."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
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
    command = [sys.executable, "-m", "server", "serve", "--model-repository", str(repository)]
    command += ["--grpc-port", "0", "--metrics-port", "0", "--log-format", "text"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        listener = Listener(process, verbose=verbose)
        try:
            url = listener.url()
            if url is not None:
                yield url
        finally:
            process.send_signal(signal.SIGTERM)
            listener.join()
    if url is None or process.returncode != 0:
        listener.show()
        raise click.ClickException(
            "the server did not start" if url is None else f"the server ended with status {process.returncode}"
        )


class Listener:
    """Reads what a server says, all the while: a pipe that nobody reads would hold it up once it is full."""

    def __init__(self, process: subprocess.Popen[str], *, verbose: bool) -> None:
        self._process = process
        self._verbose = verbose
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._heard: list[str] = []
        self._url: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="server log", daemon=True)
        self._thread.start()

    def url(self) -> str | None:
        """Wait until the server is ready; None when it ended before that."""
        return self._url.get()

    def join(self) -> None:
        """Wait until the server has closed its end."""
        self._thread.join()

    def show(self) -> None:
        """Print everything that was said, unless it was printed already."""
        if not self._verbose:
            self._console.print("".join(self._heard), end="")

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._heard.append(line)
            if self._verbose:
                self._console.print(line, end="")
            if found := READY.search(line):
                self._url.put(found["url"])
        self._url.put(None)
