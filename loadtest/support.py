"""What all measurements here share: a server process, its CPU time, models made for the purpose, tables."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

ROOT: Final = Path(__file__).resolve().parents[1]
READY: Final = re.compile(r"kairos is ready: gRPC (?P<url>\S+?), metrics port (?P<metrics>\d+)")


@dataclass(frozen=True, slots=True)
class Running:
    """A server process."""

    pid: int
    url: str
    metrics_port: int = 0

    def cpu_s(self) -> float:
        """Seconds of CPU that the process has used, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def kairos(repository: Path, *flags: str) -> Iterator[Running]:
    """A server on free ports, with the flags; drained at the end."""
    command = [sys.executable, "-m", "server", "serve", "--model-repository", str(repository)]
    command += ["--grpc-port", "0", "--metrics-port", "0", "--log-format", "text", *flags]
    with process(command, READY) as running:
        yield running


@contextmanager
def process(command: Sequence[str], ready: re.Pattern[str]) -> Iterator[Running]:
    """A process that says on standard error where it listens; ended with SIGTERM."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stderr is not None
        try:
            heard = []
            for line in child.stderr:
                heard.append(line)
                if found := ready.search(line):
                    yield Running(child.pid, found["url"], int(found.groupdict().get("metrics") or 0))
                    break
            else:
                raise RuntimeError("the server did not start:\n" + "".join(heard))
        finally:
            child.send_signal(signal.SIGTERM)
            child.stderr.read()


def write_matmul_model(folder: Path, *, width: int, layers: int, config: str, seed: int = 0) -> None:
    """A model of `layers` products with seeded weights, FP32 [N, width] to FP32 [N, width], as version 1."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    for layer in range(layers):
        weight = (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        source = "x" if layer == 0 else f"r{layer - 1}"
        nodes.append(helper.make_node("MatMul", [source, f"w{layer}"], [f"m{layer}"]))
        target = "y" if layer == layers - 1 else f"r{layer}"
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [target]))
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, folder.name, tensors[:1], tensors[1:], weights)
    (folder / "1").mkdir(parents=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "1/model.onnx")
    (folder / "config.pbtxt").write_text(config)


def machine() -> str:
    """What the figures were measured on, in a line."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("grpcio", "onnxruntime", "uvloop", "numpy"))
    return f"{len(os.sched_getaffinity(0))} cores of {model}, Python {platform.python_version()}, {versions}"
