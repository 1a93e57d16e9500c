"""Building plans: profiles, refusals, the versions' differences, the process, the caches."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.backends.canary import read_canary
from engines.backends.cuda.fake import FakeDevice
from engines.backends.tensorrt.plan import PLAN_FILE, ProfileShapes, read_card
from engines.build.errors import BuildFailed
from engines.build.tensorrt import timings
from engines.build.tensorrt.build import PlanBuilder
from engines.build.tensorrt.network import Report, build_plan, precisions
from engines.build.tensorrt.options import PlanJob, PlanOptions, Portability, profiles_of
from engines.build.tensorrt.process import build_apart
from engines.repository.graph import read_graph
from tests.support.fake_tensorrt import VERSIONS, FakeTensorRT

SPEAKS = "import json, sys; job = json.load(sys.stdin); "


def network(path: Path, *dims: int | str, operator: str = "Relu", half: bool = False) -> Path:
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], name="only")],
        "network",
        [helper.make_tensor_value_info("x", kind, dims)],
        [helper.make_tensor_value_info("y", kind, dims)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def quantised(path: Path) -> Path:
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "quantised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [scale, zero],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def job_for(model: Path, options: PlanOptions, folder: Path) -> PlanJob:
    profiles = profiles_of(read_graph(model), options)
    return PlanJob(model=model, plan=folder / "p", timing_cache=folder / "timings", profiles=profiles, options=options)


def told(plan: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan.partition(b"\0")[0])
    return found


def build(version: str, model: Path, options: PlanOptions, folder: Path) -> dict[str, Any]:
    trt = FakeTensorRT(version, FakeDevice())
    return told(build_plan(trt, job_for(model, options, folder), b"", lambda *_: None)[0])


# ---- profiles


def test_each_size_of_batch_is_a_profile_and_free_sizes_have_one(tmp_path: Path) -> None:
    graph = read_graph(network(tmp_path / "m.onnx", "N", 4))
    fixed = profiles_of(graph, PlanOptions(rows=(1, 8)))
    assert fixed == [
        {"x": ProfileShapes(least=(1, 4), best=(1, 4), most=(1, 4))},
        {"x": ProfileShapes(least=(8, 4), best=(8, 4), most=(8, 4))},
    ]
    (free,) = profiles_of(graph, PlanOptions(rows=(1, 8), fixed_rows=False))
    assert free == {"x": ProfileShapes(least=(1, 4), best=(8, 4), most=(8, 4))}


def test_other_free_dimensions_must_be_given_and_fit(tmp_path: Path) -> None:
    graph = read_graph(network(tmp_path / "m.onnx", "N", 3, "length"))
    with pytest.raises(BuildFailed, match="give --shape x=LEAST:BEST:MOST"):
        profiles_of(graph, PlanOptions())
    given = PlanOptions(rows=(2,), shapes={"x": [(3, 1), (3, 64), (3, 512)]})
    assert profiles_of(graph, given)[0]["x"].most == (2, 3, 512)
    for bad in ([(3, 1), (3, 64)], [(4, 1), (4, 1), (4, 1)], [(3, 9), (3, 5), (3, 10)], [(3,), (3,), (3,)]):
        with pytest.raises(BuildFailed, match="are not LEAST:BEST:MOST"):
            profiles_of(graph, PlanOptions(shapes={"x": bad}))


def test_a_model_without_a_batch_has_one_profile(tmp_path: Path) -> None:
    graph = read_graph(network(tmp_path / "m.onnx", 2, 4))
    assert profiles_of(graph, PlanOptions()) == [{"x": ProfileShapes(least=(2, 4), best=(2, 4), most=(2, 4))}]


def test_too_many_sizes_are_refused(tmp_path: Path) -> None:
    graph = read_graph(network(tmp_path / "m.onnx", "N", 4))
    with pytest.raises(BuildFailed, match="9 sizes"):
        profiles_of(graph, PlanOptions(rows=tuple(range(1, 10))))


# ---- versions


def test_strong_types_where_there_are_and_flags_where_there_are_not(tmp_path: Path) -> None:
    half, small = network(tmp_path / "h.onnx", "N", 4, half=True), quantised(tmp_path / "q.onnx")
    assert precisions(half) == ["FP16"]
    assert precisions(small) == ["INT8"]
    options = PlanOptions(rows=(1,))
    assert (build("8.6", half, options, tmp_path)["flags"], build("8.6", small, options, tmp_path)["flags"]) == (
        ["FP16"],
        ["INT8"],
    )
    for version, network_flags in (("8.6", 1), ("10.16", 1 | 2), ("11.4", 1)):
        said = build(version, small, options, tmp_path)
        assert said["network_flags"] == network_flags
        if version != "8.6":
            assert said["flags"] == []
        assert said["max_aux_streams"] == 0
        assert said["preview"] == ([] if version == "11.4" else ["PROFILE_SHARING_0806"])
        assert said["profiles"] == [{"x": [[1, 4]] * 3}]


def test_options_become_flags_or_are_refused_by_name(tmp_path: Path) -> None:
    model = network(tmp_path / "m.onnx", "N", 4)
    options = PlanOptions(version_compatible=True, refit=True, portability=Portability.AMPERE_PLUS, rows=(1,))
    for version in VERSIONS:
        said = build(version, model, options, tmp_path)
        assert said["flags"] == ["VERSION_COMPATIBLE", "REFIT"]
        assert said["hardware_compatibility_level"] == "AMPERE_PLUS"
        assert said["pools"] == {"WORKSPACE": 4 << 30}
    with pytest.raises(BuildFailed, match="has no flag WEIGHT_STREAMING"):
        build("8.6", model, PlanOptions(weight_streaming=True), tmp_path)
    with pytest.raises(BuildFailed, match="does not know 'same-compute-capability'"):
        build("8.6", model, PlanOptions(portability=Portability.SAME_COMPUTE_CAPABILITY), tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_refused_node_is_named_with_its_operator_and_the_reason(version: str, tmp_path: Path) -> None:
    model = network(tmp_path / "m.onnx", "N", 4, operator="NonMaxSuppression")
    with pytest.raises(BuildFailed, match=r"refuses m\.onnx: node 0 'only' \(NonMaxSuppression\): no importer"):
        build(version, model, PlanOptions(rows=(1,)), tmp_path)


@pytest.mark.parametrize(("version", "steps"), [("8.6", 0), ("10.16", 4), ("11.4", 4)])
def test_progress_is_told_where_the_version_tells_it(version: str, steps: int, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    job = job_for(network(tmp_path / "m.onnx", "N", 4), PlanOptions(rows=(1,)), tmp_path)
    build_plan(FakeTensorRT(version, FakeDevice()), job, b"", lambda *said: heard.append(said))
    assert len(heard) == steps


def test_a_builder_that_gives_up_is_said_so(tmp_path: Path) -> None:
    trt = FakeTensorRT("11.4", FakeDevice())
    trt.fail("build")
    job = job_for(network(tmp_path / "m.onnx", "N", 4), PlanOptions(rows=(1,)), tmp_path)
    with pytest.raises(BuildFailed, match=r"could not build m\.onnx"):
        build_plan(trt, job, b"", lambda *_: None)


# ---- the process


def apart(code: str, job: PlanJob, report: Report = lambda *_: None, **rest: Any) -> None:
    build_apart(job, report, [sys.executable, "-c", SPEAKS + code], **rest)


@pytest.fixture
def job(tmp_path: Path) -> PlanJob:
    return job_for(network(tmp_path / "m.onnx", "N", 4), PlanOptions(rows=(1, 2)), tmp_path)


def test_a_job_survives_the_way_to_the_process(job: PlanJob) -> None:
    assert PlanJob.from_json(job.to_json()) == replace(job, options=replace(job.options, rows=[1, 2]))


def test_progress_comes_through_whatever_else_is_printed(job: PlanJob) -> None:
    heard: list[tuple[str, int, int]] = []
    code = 'print("noise"); print(json.dumps({"step": "a", "done": 1, "of": 2})); print(json.dumps({"built": 3}))'
    apart(code, job, lambda *said: heard.append(said))
    assert heard == [("a", 1, 2)]


def test_errors_and_deaths_are_told(job: PlanJob) -> None:
    with pytest.raises(BuildFailed, match="why not"):
        apart('print(json.dumps({"error": "why not"}))', job)
    with pytest.raises(BuildFailed, match="status -9 and without a plan"):
        apart("import os; os.kill(os.getpid(), 9)", job)


def test_a_builder_that_takes_too_much_memory_is_ended(job: PlanJob) -> None:
    bounded = replace(job, options=replace(job.options, memory_bytes=1 << 20))
    with pytest.raises(BuildFailed, match="64 MiB of memory, and 1 MiB are allowed"):
        apart("import time; print(1, flush=True); time.sleep(60)", bounded, memory_of=lambda _: 64 << 20)


def test_the_real_process_says_what_is_missing_here(job: PlanJob) -> None:
    with pytest.raises(BuildFailed, match=r"docs/gpu\.md|NVIDIA"):
        build_apart(job, lambda *_: None)


# ---- caches


def test_what_two_builders_measured_is_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "timings"
    assert timings.read(path) == b""
    threads = [threading.Thread(target=timings.add, args=(path, lambda now: now + b"x")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert timings.read(path) == b"x" * 8
    assert sorted(each.name for each in path.parent.iterdir()) == ["timings", "timings.lock"]


def builder(tmp_path: Path, built: list[PlanJob], version: str = "11.4") -> PlanBuilder:
    def here(job: PlanJob, report: Report) -> None:
        built.append(job)
        trt = FakeTensorRT(version, FakeDevice())
        timings.replace(job.plan, build_plan(trt, job, b"", report)[0])

    return PlanBuilder(cache_dir=tmp_path / "plans", device=FakeDevice().info, tensorrt=VERSIONS[version], build=here)


def test_a_plan_becomes_a_version_and_is_built_once(tmp_path: Path) -> None:
    built: list[PlanJob] = []
    maker, model = builder(tmp_path, built), network(tmp_path / "m.onnx", "N", 4)
    options = PlanOptions(rows=(1, 4))
    first = maker.version(model, "net", tmp_path / "models", options)
    second = maker.version(model, "net", tmp_path / "models", options)
    assert (first.cached, second.cached, len(built)) == (False, True, 1)
    assert second.published == tmp_path / "models" / "net" / "2"
    assert {path.name for path in first.published.iterdir()} == {
        "build.json",
        "canary.npz",
        PLAN_FILE,
        PLAN_FILE + ".json",
    }
    canary = read_canary(first.published)
    assert canary is not None
    assert canary.inputs["x"].shape == (1, 4)
    assert np.array_equal(canary.outputs["y"], np.maximum(canary.inputs["x"], 0))
    config = (tmp_path / "models" / "net" / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"' in config
    assert "allowed_batch_size: 4" in config
    card = read_card(first.published / PLAN_FILE)
    assert card is not None
    assert card.inputs[0].dims == (-1, 4)


def test_whatever_changes_the_plan_builds_it_again(tmp_path: Path) -> None:
    built: list[PlanJob] = []
    maker, model = builder(tmp_path, built), network(tmp_path / "m.onnx", "N", 4)
    graph, options = read_graph(model), PlanOptions(rows=(1, 4))
    changes: list[tuple[PlanBuilder, PlanOptions]] = [
        (maker, options),
        (maker, replace(options, rows=(1, 8))),
        (maker, replace(options, calibration_digest="c")),
        (maker, replace(options, refit=True)),
        (replace(maker, tensorrt="11.4.0.107"), options),
        (replace(maker, device=replace(maker.device, name="other")), options),
        (replace(maker, device=replace(maker.device, driver="13.9")), options),
    ]
    for number, (one, given) in enumerate(changes, 1):
        assert not one.plan(model, graph, given)[2]
        assert one.plan(model, graph, given)[2]
        assert len(built) == number
    plan, _, _ = maker.plan(model, graph, options)
    plan.write_bytes(b"spoilt")
    assert not maker.plan(model, graph, options)[2]
