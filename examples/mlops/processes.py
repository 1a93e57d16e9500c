"""The server of the loop as a process, which may be killed and started again, and Kairos's commands."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

READY = "kairos is ready"
START_S = 120.0
END_S = 60.0


class Failed(RuntimeError):
    """A step of the loop did not come to its end."""


def show(console: Console, arguments: list[str], note: str = "") -> None:
    """A command, as a person would type it."""
    console.print(f"[bold]$ kairos {shlex.join(arguments)}[/]{note}")


def kairos(console: Console, *arguments: str | Path, quiet: bool = True) -> None:
    """Run a command to its end, showing what it says unless it is `quiet`. Raises Failed."""
    words = [str(each) for each in arguments]
    show(console, words)
    done = subprocess.run(
        [sys.executable, "-m", "server", *words], check=False, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode or not quiet:
        console.print(done.stdout.rstrip(), markup=False)
    if done.returncode:
        raise Failed(f"`kairos {words[0]}` ended with status {done.returncode}")


class Server:
    """`kairos serve`. Its log goes to a file, which holds what all of its processes said."""

    def __init__(self, console: Console, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._console, self._arguments, self._log = console, ["serve", *arguments], log
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def start(self) -> None:
        """Returns when it serves. Raises Failed."""
        show(self._console, self._arguments)
        self._spawn()

    def kill(self) -> None:
        """End it by SIGKILL, at once and without a word, and start it again."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.kills += 1
        self._console.print("[red]  killed by SIGKILL, and started again[/]")
        self._spawn()

    def stop(self) -> None:
        """Let it drain."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _spawn(self) -> None:
        with self._log.open("ab") as log:
            before = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server", *self._arguments], stdout=log, stderr=log, env=self._environment
            )
        until = time.monotonic() + START_S
        while READY not in self._log.read_text()[before:]:
            if self._process.poll() is not None or time.monotonic() > until:
                raise Failed(f"the server did not start:\n{self._log.read_text()[before:][-2000:]}")
            time.sleep(0.05)
