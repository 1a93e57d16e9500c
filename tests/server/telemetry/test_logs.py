"""Log lines: what they tell about the request they are written for, and that they hold no payload."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

import pytest

from engines.errors import InvalidRequest
from server.telemetry.context import REQUEST
from server.telemetry.logs import LogOptions, Logs
from tests.support.telemetry import PARENT, PARENT_TRACE, request


@pytest.fixture(autouse=True)
def untouched_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:], root.level = handlers, level


def written(file: Path, options: LogOptions, *, traced: bool = True) -> str:
    Logs(options).install()

    def write() -> None:
        REQUEST.set(request(id="r7", trace=PARENT) if traced else None)
        logging.getLogger("server.test").info("hello %s", "there", extra={"seconds": 0.5})

    copy_context().run(write)
    logging.shutdown()
    return file.read_text().strip()


def test_json_lines_say_which_request_they_are_about(tmp_path: Path) -> None:
    file = tmp_path / "log"
    line = json.loads(written(file, LogOptions(format="json", file=file)))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "server.test",
        "message": "hello there",
        "seconds": 0.5,
        "model": "fake",
        "version": 1,
        "request_id": "r7",
        "trace_id": PARENT_TRACE,
    }


def test_text_lines_say_it_at_their_end(tmp_path: Path) -> None:
    file = tmp_path / "log"
    line = written(file, LogOptions(format="text", file=file))
    assert line.endswith(f"INFO    hello there [fake:1 request=r7 trace={PARENT_TRACE}]")


def test_lines_about_nobody_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert written(file, LogOptions(format="text", file=file), traced=False).endswith("INFO    hello there")


def test_levels_can_be_turned_down_at_run_time(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs = Logs(LogOptions(format="text", file=file))
    logs.install()
    logs.update({"log_info": False, "log_verbose_level": 0})
    logging.getLogger("server.test").info("quiet")
    logging.getLogger("server.test").warning("loud")
    logging.shutdown()
    assert file.read_text().count("\n") == 1
    assert logs.current()["log_info"] is False


@pytest.mark.parametrize("changes", [{"log_file": "/etc/passwd"}, {"log_info": 1}, {"colour": "red"}])
def test_bad_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        Logs(LogOptions()).update(changes)
