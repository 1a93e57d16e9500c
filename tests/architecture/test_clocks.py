"""Clocks of the wall jump: nothing that serves requests may measure, wait or decide by one."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVING = ("engines", "server/transport", "server/cache", "server/lifecycle.py", "server/app.py", "server/opener.py")
ALLOWED = (
    "engines/build/",
    "engines/repository/sources/blobs.py",
    "server/cache/redis.py",
    "server/transport/feedback.py",
)
"""Building stands beside the serving path; machines that share a Redis agree on the age of a value by the wall's clock,
and one that is wrong costs a look-up; kept downloads are dated, and the oldest leave first; outcomes are dated by the
machines that report them."""
WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today")}


def _readings(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if (owner, node.attr) in WALL and not (isinstance(node.value, ast.Name) and owner == "loop"):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {owner}.{node.attr}")
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [f"{path}:{node.lineno}" for name in node.names if name.name in ("time", "time_ns")]
    return found


def test_nothing_that_serves_requests_reads_the_wall_clock() -> None:
    files = [
        path
        for name in SERVING
        for path in ([ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")))
        if not str(path.relative_to(ROOT)).startswith(ALLOWED)
    ]
    assert len(files) > 60
    found = [reading for path in files for reading in _readings(path)]
    assert not found, "\n".join(found)


def test_a_reading_would_be_found() -> None:
    assert _readings(ROOT / "server" / "telemetry" / "meter.py"), "it tells when a model answered last"
