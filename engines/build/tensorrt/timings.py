"""What builders have measured, shared between builds: one file for each kind of GPU and version of TensorRT."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which need not exist; waits for other processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def read(path: Path) -> bytes:
    """What is known; nothing at first."""
    with locked(path):
        return path.read_bytes() if path.exists() else b""


def add(path: Path, combine: Callable[[bytes], bytes]) -> None:
    """Replace the file by what `combine` makes of what it holds by now, in one step."""
    with locked(path):
        data = combine(path.read_bytes() if path.exists() else b"")
        replace(path, data)


def replace(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
