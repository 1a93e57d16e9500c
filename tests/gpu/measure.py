"""All that is to be measured on a GPU: `python -m tests.gpu.measure PART [--dry-run] [--out FOLDER]`.

Part `onnxruntime`: the CUDA backend, in this process and through the whole server. Part `tensorrt`: plans in FP32,
FP16 and INT8, built, checked and measured. Results are printed as JSON and written to FOLDER/PART.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from engines.backends.cuda.api import CudaDevice
from engines.backends.onnxruntime_cuda import cuda_source
from engines.backends.options import EngineOptions, GpuOptions, StreamOptions
from engines.backends.streamed import StreamedEngine
from engines.backends.tensorrt.library import load
from engines.backends.tensorrt.runtime import PlanSource
from engines.build.precision import to_fp16
from engines.build.tensorrt.build import spec_of
from engines.build.tensorrt.network import build_plan
from engines.build.tensorrt.options import PlanJob, PlanOptions, profiles_of
from engines.repository.graph import read_graph
from engines.spec import ModelSpec
from engines.tensor import Array
from tests.gpu import engines
from tests.gpu.machine import first_device
from tests.support import digits, networks

TARGET = 0.95
"""Of the engine's own limit, what the server shall reach at the best batch."""


def network(dry_run: bool) -> onnx.ModelProto:
    """ResNet-50's graph; something small for a rehearsal."""
    return networks.residual_cnn() if dry_run else networks.resnet50()


def processor(path: Path) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """What ONNX Runtime answers on the processor."""
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def measure_engine(
    open_engine: engines.Open, device: CudaDevice, path: Path, sizes: tuple[int, ...], seconds: float
) -> dict[str, Any]:
    """Answers first, then speed."""
    engine = open_engine(device, StreamOptions())
    worst = engines.check(engine, processor(path), sizes[:2])
    engine.close()
    measured = engines.variants(open_engine, device, sizes, seconds, repeats=3 if seconds > 0.1 else 1)
    limit = engines.best(measured)
    return {
        "distance from the processor": worst,
        "rows a second": measured,
        "best rows": limit.rows,
        "limit": limit.rows_a_second,
    }


def through_server(
    folder: Path, spec: ModelSpec, limit: engines.Limit, device: CudaDevice, seconds: float, *, dry_run: bool
) -> dict[str, Any]:
    """The same model behind gRPC, against the engine's own limit."""
    from tests.gpu import load as traffic  # noqa: PLC0415  (needs gRPC, which a machine for plans may lack)

    with traffic.server(folder, dry_run=dry_run) as (process, port):
        callers = 8
        found = asyncio.run(traffic.measure(port, process, spec, limit.rows, seconds, callers))
    share = found["rows a second"] / limit.rows_a_second
    return {**found, "share of the engine's limit": share, "reached": share >= TARGET, "gpu": device.info.name}


def onnxruntime_part(device: CudaDevice, folder: Path, seconds: float, *, dry_run: bool) -> dict[str, Any]:
    sizes = (1, 4) if dry_run else (1, 8, 32, 64, 128)
    version = folder / "models" / "net" / "1"
    version.mkdir(parents=True)
    path = version / "model.onnx"
    onnx.save(network(dry_run), path)
    config = f"max_batch_size: {sizes[-1]}\ninstance_group {{ kind: KIND_GPU count: 1 }}\n"
    (version.parent / "config.pbtxt").write_text(config)
    spec = replace(spec_of(read_graph(path), "net", PlanOptions(rows=sizes)), platform="onnxruntime_onnx")

    def open_engine(on: CudaDevice, stream: StreamOptions) -> StreamedEngine:
        return cuda_source(spec, path, EngineOptions(), GpuOptions(stream=stream))(on)

    found = measure_engine(open_engine, device, path, sizes, seconds)
    limit = engines.Limit(found["best rows"], found["limit"])
    found["server"] = through_server(folder / "models", spec, limit, device, seconds, dry_run=dry_run)
    return found


def tensorrt_part(device: CudaDevice, folder: Path, seconds: float, *, dry_run: bool) -> dict[str, Any]:
    trt = load()
    sizes = (1, 4) if dry_run else (1, 32, 128)
    found: dict[str, Any] = {"tensorrt": trt.__version__}
    for label, path in precisions(folder, dry_run=dry_run).items():
        options = PlanOptions(rows=sizes)
        graph = read_graph(path)
        spec = spec_of(graph, "net", options)
        plan = folder / f"{label}.plan"
        job = PlanJob(
            model=path, plan=plan, timing_cache=folder / "t", profiles=profiles_of(graph, options), options=options
        )
        device.bind()
        plan.write_bytes(build_plan(trt, job, b"", lambda *_: None)[0])
        device.unbind()

        def open_engine(
            on: CudaDevice, stream: StreamOptions, plan: Path = plan, spec: ModelSpec = spec
        ) -> StreamedEngine:
            return PlanSource(trt, plan, spec, stream).open(on)

        found[label] = measure_engine(open_engine, device, path, sizes, seconds)
    return found


def precisions(folder: Path, *, dry_run: bool) -> dict[str, Path]:
    """ONNX files by name: the network in FP32, FP16 and calibrated INT8, and the digits network."""
    full, half, small = (folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8"))
    model = network(dry_run)
    onnx.save(model, full)
    onnx.save(to_fp16(model), half)
    spec = spec_of(read_graph(full), "net", PlanOptions())

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            noise = np.random.default_rng(0)
            self.left = [
                {t.name: noise.standard_normal((8, *t.shape)).astype(np.float32) for t in spec.inputs} for _ in range(4)
            ]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    quantize_static(
        str(full),
        str(small),
        Noise(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return {"fp32": full, "fp16": half, "int8": small, "digits": digits.MODEL}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("part", choices=["onnxruntime", "tensorrt"])
    arguments.add_argument("--dry-run", action="store_true")
    arguments.add_argument("--seconds", type=float, default=3.0, help="of each figure")
    arguments.add_argument("--out", type=Path, default=Path("build/gpu"))
    given = arguments.parse_args()
    device = first_device(given.dry_run)
    seconds = 0.05 if given.dry_run else given.seconds
    part = onnxruntime_part if given.part == "onnxruntime" else tensorrt_part
    with tempfile.TemporaryDirectory() as folder:
        found = part(device, Path(folder), seconds, dry_run=given.dry_run)
    found["machine"] = {"gpu": device.info.name, "driver": device.info.driver, "onnxruntime": ort.__version__}
    found["rehearsal"] = given.dry_run
    text = json.dumps(found, indent=2, default=str)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{given.part}.json").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
