"""The TensorRT backend on a fake package with each supported version's surface, down to a fake GPU."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.backends.canary import Canary, read_canary
from engines.backends.cuda.api import CudaError, DeviceInfo
from engines.backends.cuda.fake import FakeDevice
from engines.backends.options import StreamOptions
from engines.backends.sweep import sample_inputs
from engines.backends.tensorrt.library import dtype_of
from engines.backends.tensorrt.plan import PLAN_FILE, PlanCard, PlanKey, card_of, key_of, read_card, read_plan
from engines.backends.tensorrt.runtime import PlanSource
from engines.build.tensorrt.network import build_plan
from engines.build.tensorrt.options import PlanJob, PlanOptions, profiles_of
from engines.errors import EngineDied, EngineFailed, InvalidRequest, LoadFailed
from engines.repository.graph import read_graph
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import DType
from tests.support.fake_tensorrt import TYPES, VERSIONS, FakeTensorRT, listing

ROOT = Path(__file__).parents[3]
SOURCES = [
    ROOT / "engines/backends/tensorrt/library.py",
    ROOT / "engines/backends/tensorrt/runtime.py",
    ROOT / "engines/build/tensorrt/network.py",
]
"""All that touches the package."""
HOLDERS = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
    "error": "ParserError",
}
"""Names that our code gives to TensorRT's objects."""


def squares(path: Path, dtype: int = TensorProto.FLOAT) -> Path:
    """y = x * x, any number of rows of four."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["y"], name="square")],
        "squares",
        [helper.make_tensor_value_info("x", dtype, ["N", 4])],
        [helper.make_tensor_value_info("y", dtype, ["N", 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def spec(dtype: DType = DType.FP32, rows: tuple[int, ...] = (1, 4, 8)) -> ModelSpec:
    return ModelSpec(
        "squares", 1, "tensorrt_plan", (TensorSpec("x", dtype, (4,)),), (TensorSpec("y", dtype, (4,)),), rows[-1], rows
    )


def plan_in(folder: Path, trt: FakeTensorRT, model: Path, options: PlanOptions) -> Path:
    job = PlanJob(
        model=model,
        plan=folder / PLAN_FILE,
        timing_cache=folder / "timings",
        profiles=profiles_of(read_graph(model), options),
        options=options,
    )
    plan, _ = build_plan(trt, job, b"", lambda *_: None)
    job.plan.write_bytes(plan)
    return job.plan


def source(tmp_path: Path, trt: FakeTensorRT, **stream: Any) -> PlanSource:
    plan = plan_in(tmp_path, trt, squares(tmp_path / "m.onnx"), PlanOptions(rows=(1, 4, 8)))
    return PlanSource(trt, plan, spec(), StreamOptions(**stream))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("graphs", [False, True])
def test_plans_answer_as_the_file_does_with_every_profile(version: str, graphs: bool, tmp_path: Path) -> None:
    device = FakeDevice(seed=3)
    device.bind()
    engine = source(tmp_path, FakeTensorRT(version, device), graphs=graphs).open(device)
    for rows in (1, 4, 8) * 8:
        given = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_allclose(engine.execute({"x": given}, ["y"])["y"], given * given, rtol=1e-6)
    assert device.calls.get("launch", 0) == (12 if graphs else 0)  # from the third time on, by slot and shape
    engine.close()
    assert device.leaks == {}


@pytest.mark.parametrize(
    ("onnx_type", "dtype"),
    [
        (TensorProto.FLOAT16, DType.FP16),
        (TensorProto.INT32, DType.INT32),
        (TensorProto.INT64, DType.INT64),
        (TensorProto.FLOAT, DType.FP32),
    ],
)
def test_types_go_through(onnx_type: int, dtype: DType, tmp_path: Path) -> None:
    device = FakeDevice()
    device.bind()
    trt = FakeTensorRT("11.4", device)
    plan = plan_in(tmp_path, trt, squares(tmp_path / "m.onnx", onnx_type), PlanOptions(rows=(4,)))
    engine = PlanSource(trt, plan, spec(dtype, (4,)), StreamOptions()).open(device)
    given = np.arange(16).reshape(4, 4).astype(dtype.numpy)
    assert np.array_equal(engine.execute({"x": given}, ["y"])["y"], given * given)
    engine.close()


@pytest.mark.parametrize(
    ("onnx_type", "dtype"),
    [
        (TensorProto.BFLOAT16, DType.BF16),
        (TensorProto.INT8, DType.INT8),
        (TensorProto.BOOL, DType.BOOL),
        (TensorProto.UINT8, DType.UINT8),
        (TensorProto.FLOAT8E4M3FN, DType.UINT8),
    ],
)
def test_other_types_are_known_by_their_names(onnx_type: int, dtype: DType) -> None:
    trt = FakeTensorRT("11.4", FakeDevice())
    assert dtype_of(trt.DataType[TYPES[onnx_type]], "x") is dtype  # type: ignore[attr-defined]
    with pytest.raises(LoadFailed, match="INT4"):
        dtype_of(trt.DataType.INT4, "x")  # type: ignore[attr-defined]


@pytest.mark.parametrize("version", VERSIONS)
def test_outputs_whose_size_depends_on_the_data(version: str, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["z"]), helper.make_node("Cast", ["z"], ["y"], to=TensorProto.INT32)],
        "where",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, "found"])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    device = FakeDevice(seed=1)
    device.bind()
    trt = FakeTensorRT(version, device)
    where = ModelSpec(
        "where",
        1,
        "tensorrt_plan",
        (TensorSpec("x", DType.FP32, (8,)),),
        (TensorSpec("y", DType.INT32, (1, -1)),),
    )
    engine = PlanSource(trt, plan_in(tmp_path, trt, path, PlanOptions()), where, StreamOptions()).open(device)
    for ones in (1, 8, 0, 5):
        given = np.zeros(8, np.float32)
        given[:ones] = 1
        assert np.array_equal(engine.execute({"x": given}, ["y"])["y"], np.arange(ones)[None])
    assert "launch" not in device.calls
    engine.close()
    assert device.leaks == {}


def test_streamable_weights_get_the_budget_that_tensorrt_proposes(tmp_path: Path) -> None:
    device = FakeDevice()
    device.bind()
    trt = FakeTensorRT("11.4", device)
    plan = plan_in(tmp_path, trt, squares(tmp_path / "m.onnx"), PlanOptions(rows=(4,), weight_streaming=True))
    engine = PlanSource(trt, plan, spec(rows=(4,)), StreamOptions()).open(device)
    assert engine._runner._plan.engine.weight_streaming_budget_v2 == 50  # type: ignore[attr-defined]


def test_instances_share_one_plan_and_the_last_one_takes_it_along(tmp_path: Path) -> None:
    device = FakeDevice()
    device.bind()
    trt = FakeTensorRT("11.4", device)
    plans = source(tmp_path, trt)
    first, second = plans.open(device), plans.open(device)
    assert plans._loaded[0][1] == 2
    assert first._runner._plan is second._runner._plan  # type: ignore[attr-defined]
    first.close()
    second.execute({"x": np.ones((1, 4), np.float32)}, ["y"])
    second.close()
    assert plans._loaded == {}


# ---- faults


def test_what_the_plan_is_not_made_for_is_refused_and_the_next_batch_runs(tmp_path: Path) -> None:
    device = FakeDevice()
    device.bind()
    engine = source(tmp_path, FakeTensorRT("11.4", device)).open(device)
    with pytest.raises(InvalidRequest, match=r"takes no inputs of \{'x': \(3, 4\)\}"):
        engine.execute({"x": np.ones((3, 4), np.float32)}, ["y"])
    assert engine.execute({"x": np.full((4, 4), 2, np.float32)}, ["y"])["y"][0, 0] == 4


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [("read", LoadFailed, "cannot read the plan"), ("context", EngineFailed, "no memory for a context")],
)
def test_what_fails_at_the_start_leaves_nothing_behind(
    step: str, error: type[Exception], text: str, tmp_path: Path
) -> None:
    device = FakeDevice()
    trt = FakeTensorRT("11.4", device)
    plans = source_unbound(tmp_path, trt, device)
    trt.fail(step)
    with pytest.raises(error, match=text):
        plans.open(device)
    assert device.leaks == {}
    assert plans._loaded == {}


def source_unbound(tmp_path: Path, trt: FakeTensorRT, device: FakeDevice) -> PlanSource:
    device.bind()
    made = source(tmp_path, trt)
    device.unbind()
    return made


def test_too_little_memory_leaves_nothing_behind(tmp_path: Path) -> None:
    device = FakeDevice()
    plans = source_unbound(tmp_path, FakeTensorRT("11.4", device), device)
    device.fail("allocate", "CUDA_ERROR_OUT_OF_MEMORY", after=2)
    with pytest.raises(CudaError, match="OUT_OF_MEMORY"):
        plans.open(device)
    assert device.leaks == {}
    assert plans._loaded == {}


def test_an_execution_that_is_refused_fails_its_batch_alone(tmp_path: Path) -> None:
    device = FakeDevice()
    device.bind()
    trt = FakeTensorRT("11.4", device)
    engine = source(tmp_path, trt).open(device)
    trt.fail("execute")
    with pytest.raises(EngineFailed, match="refused the execution") as failure:
        engine.execute({"x": np.ones((1, 4), np.float32)}, ["y"])
    assert failure.value.retryable
    assert engine.execute({"x": np.full((1, 4), 3, np.float32)}, ["y"])["y"][0, 0] == 9


def test_a_sticky_error_ends_the_engine(tmp_path: Path) -> None:
    device = FakeDevice()
    device.bind()
    engine = source(tmp_path, FakeTensorRT("11.4", device)).open(device)
    device.fail("run", "CUDA_ERROR_ILLEGAL_ADDRESS")
    with pytest.raises(EngineDied, match="ILLEGAL_ADDRESS"):
        engine.execute({"x": np.ones((1, 4), np.float32)}, ["y"])


def test_a_capture_that_fails_is_done_without(tmp_path: Path) -> None:
    device = FakeDevice()
    device.bind()
    engine = source(tmp_path, FakeTensorRT("11.4", device, capture_fault=True)).open(device)
    for _ in range(8):
        assert engine.execute({"x": np.full((1, 4), 3, np.float32)}, ["y"])["y"][0, 0] == 9
    assert "launch" not in device.calls
    assert "graphs: off" in repr(engine)


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        ((TensorSpec("z", DType.FP32, (4,)),), (), "the plan's inputs are x, not z"),
        ((TensorSpec("x", DType.FP16, (4,)),), (), "'x' is FP32 in the plan, not FP16"),
        ((TensorSpec("x", DType.FP32, (5,)),), (), "does not fit"),
        ((TensorSpec("x", DType.FP32, (4,)),), (TensorSpec("w", DType.FP32, (4,)),), "no output 'w'"),
    ],
)
def test_a_plan_that_is_not_what_the_configuration_says_is_not_loaded(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], text: str, tmp_path: Path
) -> None:
    device = FakeDevice()
    device.bind()
    trt = FakeTensorRT("11.4", device)
    plan = plan_in(tmp_path, trt, squares(tmp_path / "m.onnx"), PlanOptions(rows=(1, 4, 8)))
    wrong = replace(spec(), inputs=inputs, outputs=outputs or spec().outputs)
    with pytest.raises(LoadFailed, match=text):
        PlanSource(trt, plan, wrong, StreamOptions()).open(device)


# ---- keys and canaries

HERE = DeviceInfo(0, "NVIDIA H200", (9, 0), "GPU-1", 1 << 37, "13.0")
KEY = key_of(onnx_digest="a", calibration_digest="", tensorrt="11.4.0.106", device=HERE, profiles=[], flags=[])


@pytest.mark.parametrize(
    ("key", "tensorrt", "device", "why"),
    [
        (KEY, "11.4.0.106", HERE, ""),
        (KEY, "11.4.1.5", HERE, "built with TensorRT 11.4.0.106"),
        (KEY, "11.4.0.106", replace(HERE, name="NVIDIA H100"), "built for NVIDIA H200"),
        (KEY, "11.4.0.106", replace(HERE, sm=(8, 0)), "compute capability 9.0"),
        (replace(KEY, flags=["version_compatible"]), "11.9.0.1", HERE, ""),
        (replace(KEY, flags=["version_compatible"]), "12.0.0.1", HERE, "built with"),
        (
            replace(KEY, flags=["hardware_compatible:SAME_COMPUTE_CAPABILITY"]),
            "11.4.0.106",
            replace(HERE, name="x"),
            "",
        ),
        (replace(KEY, flags=["hardware_compatible:AMPERE_PLUS"]), "11.4.0.106", replace(HERE, sm=(8, 9)), ""),
        (replace(KEY, flags=["hardware_compatible:AMPERE_PLUS"]), "11.4.0.106", replace(HERE, sm=(7, 5)), "needs"),
    ],
)
def test_a_key_says_where_its_plan_runs(key: PlanKey, tensorrt: str, device: DeviceInfo, why: str) -> None:
    found = key.misfit(tensorrt, device)
    assert (why in found) if why else not found


def test_everything_a_plan_depends_on_changes_its_key() -> None:
    changed = [
        replace(KEY, **{name: value})
        for name, value in {
            "onnx_digest": "b",
            "calibration_digest": "c",
            "tensorrt": "11.4.0.107",
            "gpu": "NVIDIA H100",
            "sm": "8.0",
            "driver": "13.1",
            "profiles": [{"x": [[1], [1], [1]]}],
            "flags": ["INT8"],
        }.items()
    ]
    assert len({key.digest() for key in (KEY, *changed)}) == len(changed) + 1


def test_the_card_is_read_before_the_plan(tmp_path: Path) -> None:
    plan = tmp_path / PLAN_FILE
    plan.write_bytes(b"whatever")
    assert read_plan(plan, "11.4.0.106", HERE) == b"whatever"  # of another tool
    PlanCard(key=KEY, plan_sha256="0" * 64).write(plan)
    card = read_card(plan)
    assert card is not None
    assert card.key.digest() == KEY.digest()
    with pytest.raises(LoadFailed, match="not the plan that its card describes"):
        read_plan(plan, "11.4.0.106", HERE)
    with pytest.raises(LoadFailed, match="build it again on this machine"):
        read_plan(plan, "10.0.0.1", HERE)
    card_of(plan).write_text("{}")
    with pytest.raises(LoadFailed, match="not the card of a plan"):
        read_plan(plan, "11.4.0.106", HERE)


def test_a_canary_finds_wrong_answers(tmp_path: Path) -> None:
    device = FakeDevice()
    device.bind()
    engine = source(tmp_path, FakeTensorRT("11.4", device)).open(device)
    given = sample_inputs(spec(), 4)
    Canary(given, {"y": given["x"] ** 2}, 0.01).save(tmp_path)
    canary = read_canary(tmp_path)
    assert canary is not None
    canary.check(engine)
    for wrong in (given["x"] ** 2 * 1.1, np.full((4, 4), np.nan, np.float32), np.zeros((2, 4), np.float32)):
        with pytest.raises(LoadFailed, match="off by"):
            Canary(given, {"y": wrong}, 0.01).check(engine)
    assert read_canary(tmp_path / "nowhere") is None


# ---- the surface


def uses(path: Path) -> tuple[list[tuple[str, str]], set[str]]:
    """What a module reads from TensorRT's objects, by class, and what it asks for first."""
    found: list[tuple[str, str]] = []
    asked: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            holder = node.value
            name = holder.attr if isinstance(holder, ast.Attribute) else getattr(holder, "id", "")
            name = name.lstrip("_")
            if name in HOLDERS:
                found.append((HOLDERS[name], node.attr))
            elif isinstance(holder, ast.Attribute) and getattr(holder.value, "id", "") == "trt":
                found.append((holder.attr, node.attr))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("hasattr", "getattr"):
            asked.update(str(argument.value) for argument in node.args[1:2] if isinstance(argument, ast.Constant))
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "names":
            asked.update(str(name.value) for name in ast.walk(node.value) if isinstance(name, ast.Constant))
    return found, asked


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_our_code_uses_is_there_in_every_version_or_asked_for_first(version: str) -> None:
    members, enums = listing(version)
    seen = 0
    for path in SOURCES:
        found, asked = uses(path)
        for holder, name in found:
            if name in asked or name == "__version__" or name == "__init__":
                continue
            if holder == "":
                assert name in members or name in enums, f"{path.name}: tensorrt.{name} in {version}"
            else:
                names = set(members.get(holder, ())) | set(enums.get(holder, ()))
                assert name in names, f"{path.name}: {holder}.{name} in {version}"
            seen += 1
    assert seen > 40


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_has_nothing_that_the_real_one_has_not(version: str) -> None:
    trt = FakeTensorRT(version, FakeDevice())
    members, enums = listing(version)
    for name, cls in vars(trt).items():
        if name.startswith("_") or not isinstance(cls, type):
            continue
        assert name in members or name in enums
    assert hasattr(trt, "IProgressMonitor") == (version != "8.6")
    config = trt.IBuilderConfig()  # type: ignore[attr-defined]
    assert hasattr(config, "progress_monitor") == (version != "8.6")
    assert not hasattr(trt.ICudaEngine, "get_binding_name")  # type: ignore[attr-defined]


def test_without_a_device_tensorrt_is_never_touched(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="before the driver"):
        FakeTensorRT("11.4").Runtime(None)  # type: ignore[attr-defined]
    assert ml_dtypes  # the types of BF16 come from there
