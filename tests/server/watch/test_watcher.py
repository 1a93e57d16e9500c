"""Setting up the watch over a version."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from engines.errors import LoadFailed
from engines.repository.definition import Definition, define, read_config
from engines.repository.layout import look
from server.watch.observation import Observation
from server.watch.watcher import Watcher
from tests.support import onnx_models


class Quiet:
    def observe(self, observations: Sequence[Observation]) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


def defined(root: Path, config: str) -> Definition:
    folder = onnx_models.write(root, "m", config=f"max_batch_size: 8\n{config}")
    model = look("m", folder)
    return define(model, model.versions[1], read_config(model))


def test_nothing_is_watched_unless_asked_for(tmp_path: Path, watcher: Watcher) -> None:
    assert watcher.open(defined(tmp_path, "watch { sample_rate: 1 }")) is None


def test_a_watched_version_has_a_monitor(tmp_path: Path, watcher: Watcher) -> None:
    watched = watcher.open(defined(tmp_path, "watch { enable: true sample_rate: 0.25 }"))
    assert watched is not None
    assert watched.tap.sinks == (watched.monitor,)
    assert watched.tap.options.rate == 0.25


def test_others_may_listen_without_it(tmp_path: Path) -> None:
    quiet = Quiet()
    watcher = Watcher([lambda definition: quiet if definition.name == "m" else None, lambda definition: None])
    watched = watcher.open(defined(tmp_path, ""))
    assert watched is not None
    assert (watched.monitor, watched.tap.sinks) == (None, (quiet,))
    watcher.close()


def test_a_damaged_baseline_leaves_the_model_in_service(tmp_path: Path, watcher: Watcher) -> None:
    definition = defined(tmp_path, "watch { enable: true }")
    (definition.folder / "1" / "baseline.json").write_text("{}")
    watched = watcher.open(definition)
    assert watched is not None
    assert watched.monitor is not None
    assert "baseline" in watched.monitor.statistics().note


def test_missing_libraries_are_named(tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "server.watch.monitor", None)
    with pytest.raises(LoadFailed, match=r"pip install 'kairos\[watch\]'"):
        watcher.open(defined(tmp_path, "watch { enable: true }"))


def test_a_server_that_watches_nothing_imports_nothing_for_it() -> None:
    code = "import sys, server.app, server.cli; print([n for n in ('scipy', 'datasketches') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
