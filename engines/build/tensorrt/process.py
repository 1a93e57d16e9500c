"""Starts the builder's process, passes its progress on, and ends it when it takes too much memory."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from engines.build.errors import BuildFailed
from engines.build.tensorrt.network import Report
from engines.build.tensorrt.options import PlanJob

LOOK_S: Final = 0.5
"""How often the builder's memory is looked at."""
COMMAND: Final = (sys.executable, "-m", "engines.build.tensorrt")


def build_apart(
    job: PlanJob,
    report: Report,
    command: Sequence[str] = COMMAND,
    memory_of: Callable[[int], int] | None = None,
    gpu: int = 0,
) -> None:
    """Build in a process of its own, on that GPU. Raises BuildFailed for whatever becomes of it but a plan."""
    bound = job.options.memory_bytes or _memory_total() * 3 // 4
    with subprocess.Popen(
        [*command, str(gpu)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, bufsize=0
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(job.to_json().encode())
            process.stdin.close()
            last = _listen(process, report, bound, memory_of or memory_of_process)
        except BaseException:
            process.kill()
            raise
        status = process.wait()
    if "error" in last:
        raise BuildFailed(str(last["error"]))
    if "built" not in last:
        raise BuildFailed(
            f"the builder's process ended with status {status} and without a plan: see its messages above"
        )


def _listen(
    process: subprocess.Popen[bytes], report: Report, bound: int, memory_of: Callable[[int], int]
) -> dict[str, Any]:
    """Read lines until the process ends; the last one."""
    assert process.stdout is not None
    last: dict[str, Any] = {}
    rest = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        while True:
            ready = waiting.select(LOOK_S)
            if (used := memory_of(process.pid)) > bound:
                raise BuildFailed(f"the builder used {used >> 20} MiB of memory, and {bound >> 20} MiB are allowed")
            if not ready:
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return last
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                last = _heard(line, last, report)


def _heard(line: bytes, last: dict[str, Any], report: Report) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:  # the library itself may print
        return last
    if not isinstance(said, dict):
        return last
    if "step" in said:
        report(said["step"], said["done"], said["of"])
    return said


def memory_of_process(process: int) -> int:
    """Resident bytes of a process; 0 once it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def _memory_total() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
