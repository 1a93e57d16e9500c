"""Sweeps: what is best, where the knee is, what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.backends.options import Accelerator
from engines.build.bench import open_version
from engines.build.errors import BuildFailed
from engines.build.plots import draw_profile
from engines.build.profile import Point, ProfileOptions, apply, curves_of, frontier_of, knee_of, profile, summary
from tests.support import digits, onnx_models
from tests.support.openvino import PretendOpenVino


def point(p99_ms: float, rows_per_second: float, *, rows: int = 1, instances: int = 1, version: int = 1) -> Point:
    return Point(
        version=version,
        rows=rows,
        instances=instances,
        threads=1,
        rows_per_second=rows_per_second,
        p50_ms=p99_ms / 2,
        p99_ms=p99_ms,
    )


BENT = [point(1, 100), point(2, 190, rows=2), point(3, 210, rows=4), point(9, 220, rows=8), point(2, 50, instances=2)]


def test_the_frontier_leaves_out_what_is_beaten_in_both() -> None:
    assert frontier_of(BENT) == BENT[:4]


def test_the_knee_is_where_the_curve_bends() -> None:
    assert knee_of(BENT) is BENT[2]
    assert knee_of(BENT[:1]) is BENT[0]


def test_the_best_keeps_the_bound() -> None:
    assert summary("m", BENT, None).best is BENT[3]
    assert summary("m", BENT, 2.5).best is BENT[1]
    assert summary("m", BENT, 0.5).best is None


def test_costs_are_those_of_the_chosen_layout_in_seconds() -> None:
    made = summary("m", [*BENT, point(4, 10, version=2)], 2.5)
    assert made.costs == {1: {1: 0.0005, 2: 0.001, 4: 0.0015, 8: 0.0045}, 2: {1: 0.002}}


def test_a_real_sweep_covers_all_layouts_and_sizes(tmp_path: Path) -> None:
    folder = onnx_models.write(tmp_path, "m", (1, 2), config="max_batch_size: 3", proto=onnx_models.scale())
    made = profile([folder / "1", folder / "2"], ProfileOptions(seconds=0.001, cores=2))
    assert {(p.version, p.rows, p.instances, p.threads) for p in made.points} == {
        (version, rows, *layout) for version in (1, 2) for rows in (1, 2, 3) for layout in ((1, 1), (1, 2), (2, 1))
    }
    assert made.best is not None
    assert all(p.rows_per_second > 0 and p.p50_ms <= p.p99_ms for p in made.points)
    picture = tmp_path / "p.png"
    draw_profile(curves_of(made.points), (made.knee.p99_ms, made.knee.rows_per_second), None, 1.0, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_accelerators_are_swept_and_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = PretendOpenVino.install(monkeypatch)
    folder = onnx_models.write(tmp_path, "m", config="max_batch_size: 1", proto=onnx_models.scale())
    made = profile([folder / "1"], ProfileOptions(seconds=0.001, cores=2, accelerators=(None, Accelerator.OPENVINO)))
    assert [p.accelerator for p in made.points] == [None] * 3 + [Accelerator.OPENVINO] * 3
    assert [options["num_streams"] for options in pretended.opened] == ["1", "1", "2"]
    assert sum("on openvino" in name for name in curves_of(made.points)) == 3
    digests = set()
    for accelerator in (Accelerator.OPENVINO, None):
        apply(replace(made.points[0], accelerator=accelerator), folder)
        trial = open_version(folder / "1")
        assert trial.accelerator is accelerator
        digests.add(trial.definition.spec.digest)
    assert len(digests) == 2  # what names costs and cached answers


def test_costs_are_those_of_the_chosen_accelerator() -> None:
    fast = replace(point(1, 400, rows=4), accelerator=Accelerator.OPENVINO)
    assert summary("m", [*BENT, fast], None).costs == {1: {4: 0.0005}}


@pytest.mark.parametrize(
    ("config", "max_rows"), [("", 32), ("max_batch_size: 0", 0), ('max_batch_size: 8 metric_tags { key: "a" }', 8)]
)
def test_applying_changes_how_it_runs_and_not_what_it_takes(tmp_path: Path, config: str, max_rows: int) -> None:
    folder = onnx_models.write(tmp_path, "m", config=config, proto=onnx_models.scale())
    apply(point(1, 1, rows=4, instances=2), folder)
    definition = open_version(folder / "1").definition
    assert definition.spec.max_rows == max_rows
    assert (definition.engine.instances, definition.engine.intra_op_threads) == (2, 1)
    assert definition.limits.preferred_rows == ((4,) if max_rows else ())
    assert ("a" in definition.metric_tags) == ("metric_tags" in config)


def test_folders_that_hold_no_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    with pytest.raises(BuildFailed, match="does not make a version"):
        profile([tmp_path / "m" / "1"], ProfileOptions())
    with pytest.raises(BuildFailed, match="does not make a version"):
        profile([digits.EXAMPLES / "models" / "nothing" / "1"], ProfileOptions())
