"""Captured files: what is in them, when they are closed, how they survive."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from engines.build.data import open_data
from engines.build.errors import BuildFailed
from engines.errors import LoadFailed
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType
from server.pb.model_config_pb2 import ModelCapture
from server.watch import capture as room
from server.watch.capture import Capture, CaptureOptions, capture_options_of
from server.watch.captured import Redaction
from server.watch.sampled import SampledSink
from tests.server.watch.support import SPEC, images, observation, scores

ODD = ModelSpec(
    name="odd",
    version=1,
    platform="onnxruntime_onnx",
    inputs=(
        TensorSpec("text", DType.BYTES, (1,)),
        TensorSpec("tokens", DType.INT64, (-1,)),
        TensorSpec("extra", DType.BF16, (2,), optional=True),
    ),
    outputs=(TensorSpec("flag", DType.BOOL, (1,)), TensorSpec("half", DType.FP16, (-1, -1))),
    max_rows=4,
)


def files(state: Path, model: str = "m") -> list[Path]:
    return sorted((state / "capture" / model).glob("*/*.parquet"))


def names(state: Path, model: str = "m") -> list[str]:
    return sorted(path.suffix for path in (state / "capture" / model).glob("*/*"))


def read(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return lines


def test_rows_become_lines_that_a_build_reads(tmp_path: Path) -> None:
    capture = Capture(SPEC, CaptureOptions(), tmp_path)
    capture.observe([observation(images(2), scores(2), id_="q"), observation(images(1, 2), {}, at=1e9 + 1)])
    assert names(tmp_path) == [".journal"]
    capture.close()
    assert names(tmp_path) == [".parquet"]
    (path,) = files(tmp_path)
    lines = read(path)
    assert [(line["id"], line["row"], line["at"].timestamp(), line["origin"]) for line in lines] == [
        ("q", 0, 1e9, "engine"),
        ("q", 1, 1e9, "engine"),
        ("r", 0, 1e9 + 1, "engine"),
    ]
    np.testing.assert_allclose(lines[1]["output.p"], [0.1, 0.7, 0.1, 0.1], rtol=1e-6)
    assert lines[2]["output.p"] is None
    schema = pq.ParquetFile(path).schema_arrow
    assert schema.metadata[b"digest"] == b"d1"
    assert schema.field("input.x").metadata == {b"dtype": b"FP32", b"shape": b"[2, 3]"}
    for source in (path, tmp_path / "capture" / "m", tmp_path / "capture" / "m" / "2"):
        data = open_data(source, SPEC.inputs)
        np.testing.assert_array_equal(data.take(0, 9)["x"], images(3)["x"])


def test_all_kinds_of_tensors(tmp_path: Path) -> None:
    capture = Capture(ODD, CaptureOptions(), tmp_path)
    given = {"text": [[b"h\xff"], [b""]], "tokens": [[1, 2, 3], [4, 5, 6]]}
    answer = {"flag": [[True], [False]], "half": np.ones((2, 1, 2))}
    capture.observe(
        [
            observation(given, answer, ODD),
            observation({"text": [[b"x"]], "tokens": [[7]], "extra": [[1.5, -2.0]]}, {"half": np.ones((1, 3, 1))}, ODD),
        ]
    )
    capture.close()
    lines = read(files(tmp_path, "odd")[0])
    assert [line["input.text"] for line in lines] == [[b"h\xff"], [b""], [b"x"]]
    assert [line["input.tokens"] for line in lines] == [[1, 2, 3], [4, 5, 6], [7]]
    assert [line["input.tokens.shape"] for line in lines] == [[3], [3], [1]]
    assert [line["input.extra"] for line in lines] == [None, None, [1.5, -2.0]]
    assert [line["output.flag"] for line in lines] == [[True], [False], None]
    assert [line["output.half.shape"] for line in lines] == [[1, 2], [1, 2], [3, 1]]
    # A build takes the most frequent shape, and leaves out lines without an input that it needs.
    folder = tmp_path / "capture"
    assert open_data(folder, ODD.inputs[1:2]).take(0, 9)["tokens"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert open_data(folder, ODD.inputs[2:]).take(0, 9)["extra"].tolist() == [[1.5, -2.0]]


def test_a_model_without_batches(tmp_path: Path) -> None:
    spec = replace(SPEC, max_rows=0, name="single")
    capture = Capture(spec, CaptureOptions(), tmp_path)
    capture.observe([observation({"x": images(1)["x"][0]}, {}, spec) for _ in range(2)])
    capture.close()
    assert open_data(files(tmp_path, "single")[0], spec.inputs).take(0, 9)["x"].shape == (2, 2, 3)


def test_files_are_closed_by_rows_bytes_and_time(tmp_path: Path) -> None:
    capture = Capture(SPEC, CaptureOptions(rotate_rows=3, rotate_s=10.0), tmp_path)
    capture.observe([observation(images(4), scores(4))])
    assert len(files(tmp_path)) == 1
    capture.observe([observation(images(1), scores(1))])
    assert len(files(tmp_path)) == 1
    capture.observe([observation(images(1), scores(1), at=1e9 + 10)])  # the old one first
    assert [len(read(path)) for path in files(tmp_path)] == [4, 1]
    capture.rotate(1e9 + 19)
    assert len(files(tmp_path)) == 2
    capture.rotate(1e9 + 20)
    assert len(files(tmp_path)) == 3
    capture.close()
    assert names(tmp_path) == [".parquet"] * 3
    small = Capture(replace(SPEC, name="small"), CaptureOptions(rotate_bytes=1), tmp_path)
    small.observe([observation(images(1), scores(1))])
    assert len(files(tmp_path, "small")) == 1
    assert small.statistics().rows == 1
    assert small.statistics().files == 1


def test_the_oldest_files_of_all_versions_make_room(tmp_path: Path) -> None:
    first = Capture(replace(SPEC, version=1), CaptureOptions(rotate_rows=1), tmp_path)
    first.observe([observation(images(1), scores(1))])
    size = files(tmp_path)[0].stat().st_size
    second = Capture(SPEC, CaptureOptions(rotate_rows=1, max_bytes=3 * size + size // 2), tmp_path)
    for number in range(1, 5):
        second.observe([observation(images(1, number), scores(1), at=1e9 + number)])
    assert [read(path)[0]["at"].timestamp() - 1e9 for path in files(tmp_path)] == [2, 3, 4]
    assert not list((tmp_path / "capture" / "m" / "1").iterdir())
    assert second.statistics().size_bytes <= 3 * size + size // 2


def test_redacted_inputs_are_dropped_or_hashed(tmp_path: Path) -> None:
    secret = {"text": Redaction.HASH, "tokens": Redaction.DROP, "half": Redaction.DROP}
    lines = []
    for state in ("one", "one", "other"):
        folder = tmp_path / state
        capture = Capture(ODD, CaptureOptions(redact=secret), folder)
        given = {"text": [[b"Ann"], [b"Bob"], [b"Ann"]], "tokens": [[1]] * 3}
        capture.observe([observation(given, {"flag": [[True]] * 3}, ODD)])
        capture.close()
        path = files(folder, "odd")[-1]
        assert b"Ann" not in path.read_bytes()
        lines.append([line["input.text"] for line in read(path)])
        assert "input.tokens" not in read(path)[0]
        assert "output.half" not in read(path)[0]
    assert lines[0][0] == lines[0][2] != lines[0][1]
    assert lines[0] == lines[1]  # the key stays
    assert lines[0] != lines[2]  # and is of this state directory
    assert stat.S_IMODE((tmp_path / "one" / "capture" / "redaction.key").stat().st_mode) == 0o600
    with pytest.raises(BuildFailed, match="'tokens' was not captured"):
        open_data(tmp_path / "one", ODD.inputs[1:2])
    with pytest.raises(BuildFailed, match="captured as hashes"):
        open_data(tmp_path / "one", ODD.inputs[:1])


def test_a_process_that_died_leaves_its_rows(tmp_path: Path) -> None:
    dead = Capture(SPEC, CaptureOptions(), tmp_path)
    dead.observe([observation(images(2), scores(2))])
    dead.observe([observation(images(2, 2), scores(2))])
    assert dead._journal is not None
    dead._journal._file.close()  # its lock goes with it
    (journal,) = (tmp_path / "capture" / "m" / "2").glob("*.journal")
    os.truncate(journal, journal.stat().st_size - 7)
    journal.with_suffix(".parquet.part").write_bytes(b"half")

    capture = Capture(replace(SPEC, version=3), CaptureOptions(), tmp_path)  # the next version saves it, too
    assert capture.statistics().recovered == 2
    assert names(tmp_path) == [".parquet"]
    np.testing.assert_array_equal(open_data(files(tmp_path)[0], SPEC.inputs).take(0, 9)["x"], images(2)["x"])


def test_the_journal_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    living = Capture(SPEC, CaptureOptions(), tmp_path)
    living.observe([observation(images(1), scores(1))])
    assert Capture(SPEC, CaptureOptions(), tmp_path).statistics().recovered == 0
    living.observe([observation(images(1, 1), scores(1))])
    living.close()
    assert len(read(files(tmp_path)[0])) == 2


def test_a_disk_that_fails_costs_rows_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Capture(SPEC, CaptureOptions(), tmp_path)

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(room._Journal, "write", full)
        with pytest.raises(OSError, match="no space left"):
            capture.observe([observation(images(2), scores(2))])
    capture.observe([observation(images(1), scores(1))])
    capture.close()
    assert (capture.statistics().rows, capture.statistics().failed) == (1, 2)
    assert len(files(tmp_path)) == 1


def test_settings_of_a_model(tmp_path: Path) -> None:
    assert capture_options_of(ModelCapture()) is None
    options = capture_options_of(ModelCapture(enable=True, redact={"x": ModelCapture.HASH, "y": ModelCapture.DROP}))
    assert options == CaptureOptions(redact={"x": Redaction.HASH, "y": Redaction.DROP})
    with pytest.raises(LoadFailed, match="share: 2 is not between"):
        capture_options_of(ModelCapture(enable=True, share=2.0))
    with pytest.raises(LoadFailed, match="is more than max_bytes"):
        capture_options_of(ModelCapture(enable=True, max_bytes=10))
    with pytest.raises(LoadFailed, match="no input or output 'nothing'"):
        Capture(SPEC, CaptureOptions(redact={"nothing": Redaction.DROP}), tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(LoadFailed, match=r"kairos\[capture\]"):
        Capture(SPEC, CaptureOptions(), tmp_path)


def test_a_sink_gets_its_share() -> None:
    seen: list[object] = []

    class Recorder:
        closed = False

        def observe(self, observations: Any) -> None:
            seen.extend(observations)

        def close(self) -> None:
            self.closed = True

    recorder = Recorder()
    sink = SampledSink(recorder, 0.2)
    each = observation(images(1), scores(1))
    for _ in range(100):
        sink.observe([each] * 20)
    assert math.isclose(len(seen), 400, abs_tol=90)  # five standard deviations
    sink.close()
    assert recorder.closed
