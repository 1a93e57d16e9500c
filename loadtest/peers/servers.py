"""The servers that are compared: how each is installed, configured, started and asked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from loadtest.load.client import Body
from loadtest.load.plan import infer_body
from loadtest.load.scenario import Kind
from loadtest.peers.models import Model
from server.pb import grpc_service_pb2 as pb

ROOT: Final = Path(__file__).resolve().parents[2]
HOME: Final = ROOT / ".tools" / "peers"
INSIDE: Final = Path(__file__).parent / "inside"
_START_S: Final = 90.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a server is to serve, and with what."""

    folder: Path
    """For its configuration; empty."""
    models: Sequence[Model]
    files: Mapping[str, Path]
    """The ONNX files by the models' names."""
    threads: int
    """Of ONNX Runtime, for each model; there is one instance of each."""
    port: int


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started."""

    line: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Peer(Protocol):
    """A server under comparison."""

    name: str
    home: str
    """The folder of its environment in HOME; peers may share one. Empty where it runs in the project's own."""
    packages: Sequence[str]
    """What its environment holds, for pip."""
    unfair: str
    """What speaks for or against it here that has nothing to do with its merits."""

    reads_timeout: bool
    """Whether it learns of deadlines from the request's parameter `timeout`, instead of gRPC."""

    def build(self, folder: Path) -> None:
        """Make in its environment what pip does not bring, unless it is there. RuntimeError where a tool is missing."""
        ...

    def prepare(self, setting: Setting) -> Command:
        """Write the configuration."""
        ...

    def body(self, kind: Kind, request: pb.ModelInferRequest) -> Body:
        """A request in the words that it understands best."""
        ...

    def outputs(self, answer: bytes) -> bytes:
        """The raw contents of the first output in an answer."""
        ...


class KServePeer:
    """What all that speak the KServe protocol share."""

    reads_timeout = False

    def build(self, folder: Path) -> None:
        """Nothing."""

    def body(self, kind: Kind, request: pb.ModelInferRequest) -> Body:
        """As it is."""
        return infer_body(kind, request)

    def outputs(self, answer: bytes) -> bytes:
        """The raw contents of the first output, wherever it was put."""
        read = pb.ModelInferResponse.FromString(answer)
        if read.raw_output_contents:
            return bytes(read.raw_output_contents[0])
        import numpy as np  # noqa: PLC0415

        return np.asarray(read.outputs[0].contents.fp32_contents, np.float32).tobytes()


class Kairos(KServePeer):
    """Ours."""

    name = "kairos"
    home = ""
    packages: Sequence[str] = ()
    unfair = "written by those who made this comparison"

    def prepare(self, setting: Setting) -> Command:
        """Defaults, but for the threads: batches form by themselves, deadlines decide."""
        for model in setting.models:
            folder = setting.folder / model.name
            (folder / "1").mkdir(parents=True)
            shutil.copy(setting.files[model.name], folder / "1/model.onnx")
            (folder / "config.pbtxt").write_text(
                f"max_batch_size: {model.max_rows} instance_group {{ count: 1 }}\n"
                f"parameters {{ key: 'intra_op_thread_count' value {{ string_value: '{setting.threads}' }} }}\n"
            )
        flags = ["--grpc-port", str(setting.port), "--metrics-port", "0", "--log-format", "text"]
        return Command([sys.executable, "-m", "server", "serve", "--model-repository", str(setting.folder), *flags])


class Bare(KServePeer):
    """A script of sixty lines."""

    name = "bare grpc.aio"
    home = ""
    packages: Sequence[str] = ()
    unfair = "does not batch, check, measure, or serve more than one type of request"

    def prepare(self, setting: Setting) -> Command:
        """Nothing to configure."""
        models = [f"{name}={file}" for name, file in setting.files.items()]
        script = str(INSIDE / "bare_server.py")
        line = [sys.executable, script, str(setting.port), str(setting.threads), *models]
        return Command(line, {"PYTHONPATH": str(ROOT)})


class Tritonserver(KServePeer, ABC):
    """The tritonserver binary out of nvidia-pytriton's wheel, with one backend or another.

    Two of its faults are gone around in its favour:

    - Where its queue knows timeouts, a request that comes while the only instance is still ending a batch wakes nobody:
      unless another comes, it waits for 500 ms, which left 19 answers a second for 8 callers. So each model has two
      instances, which take turns: one executes at a time, within the budget of threads, while the other gathers. It
      still happens where both are busy. One instance without timeouts never waited like that, but refuses nothing.
    - Its gRPC front end crashes when many calls end early (SIGSEGV in a thread of its own, within seconds above
      capacity). So its calls have no gRPC deadline: it is told by the parameter `timeout`, and the client judges.

    Tried besides, with no difference beyond the noise: a larger pool of requests (--grpc-infer-allocation-pool-size),
    no pinned memory, eager batching, preferred batch sizes. A queue delay of 500 us took the latency of one caller from
    0.15 to 0.9 ms. The number of threads of the front end is no option of this version.
    """

    home = "triton"
    packages: Sequence[str] = ("nvidia-pytriton==0.7.0", "onnxruntime=={onnxruntime}")
    reads_timeout = True
    backend = ""
    _TYPES: Final = {"FP32": "TYPE_FP32", "INT64": "TYPE_INT64"}

    def prepare(self, setting: Setting) -> Command:
        """Dynamic batching without delay; what its `timeout` has passed for is refused."""
        site = _site(HOME / self.home)
        repository = setting.folder / "models"
        for model in setting.models:
            folder = repository / model.name
            (folder / "1").mkdir(parents=True)
            shutil.copy(setting.files[model.name], folder / "1/model.onnx")
            (folder / "config.pbtxt").write_text(self._config(model, setting.threads))
        libraries = [str(site / "nvidia_pytriton.libs"), f"{sys.base_prefix}/lib"]
        line = [
            str(_wheel(site) / "bin/tritonserver"), f"--model-repository={repository}",
            f"--backend-directory={self._backends(setting)}", f"--grpc-port={setting.port}",
            "--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false", "--log-info=false",
        ]  # fmt: skip
        return Command(line, {"LD_LIBRARY_PATH": ":".join(libraries)})

    @abstractmethod
    def _backends(self, setting: Setting) -> Path:
        """The folder of the backends."""

    def _config(self, model: Model, threads: int) -> str:
        dims = ", ".join(map(str, model.shape))
        # a request's timeout only counts where it is shorter than the default, which must not be the 0 of none
        policy = "timeout_action: REJECT default_timeout_microseconds: 60000000 allow_timeout_override: true"
        return f"""
name: "{model.name}" backend: "{self.backend}" max_batch_size: {model.max_rows}
input {{ name: "{model.input}" data_type: {self._TYPES[model.datatype]} dims: [ {dims} ] }}
output {{ name: "{model.output}" data_type: TYPE_FP32 dims: [ {model.classes} ] }}
instance_group {{ kind: KIND_CPU count: 2 }}
dynamic_batching {{ default_queue_policy {{ {policy} }} }}
parameters {{ key: "threads" value {{ string_value: "{threads}" }} }}
"""


class Triton(Tritonserver):
    """With ONNX Runtime in its own process, behind a backend in C++ that is compiled here."""

    name = "triton"
    backend = "onnxruntime"
    unfair = (
        "its wheel has no ONNX Runtime backend; this is one of ours, in C++ on ONNX Runtime's C API, which can do only "
        "what these models need, and may cost less or more than NVIDIA's own; its front end crashes when calls with "
        "gRPC deadlines end early, so it gets deadlines as its parameter `timeout` alone, which it counts from the "
        "queue, not from the socket"
    )

    HEADERS: Final = "github.com/yalue/onnxruntime_go@v1.27.0"
    """The Go module that carries ONNX Runtime's C header; a later library still has all that an earlier one had."""
    SOURCES: Final = ("triton_onnxruntime.cc", "triton_abi.h")

    def build(self, folder: Path) -> None:
        """Compile the backend, against the very library that Python's wheel of ONNX Runtime loads."""
        backend = self._built(folder)
        sources = [INSIDE / name for name in self.SOURCES]
        if backend.exists() and backend.stat().st_mtime > max(source.stat().st_mtime for source in sources):
            return
        compiler, go = shutil.which("g++") or shutil.which("c++"), shutil.which("go")
        if not compiler or not go:
            missing = "a C++ compiler" if not compiler else "Go, which fetches ONNX Runtime's C header,"
            raise RuntimeError(f"{missing} is missing, and Triton's backend has to be compiled (--peers leaves it out)")
        backend.parent.mkdir(parents=True, exist_ok=True)
        fetch = [go, "mod", "download", "-json", self.HEADERS]
        headers = json.loads(subprocess.run(fetch, cwd=folder, check=True, stdout=subprocess.PIPE).stdout)["Dir"]
        (runtime,) = (_site(folder) / "onnxruntime/capi").glob("libonnxruntime.so.*")
        linked = backend.with_name("libonnxruntime.so.1")  # its soname, which no file of the wheel has
        linked.unlink(missing_ok=True)
        linked.symlink_to(runtime)
        unfinished = backend.with_suffix(".new")
        flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", f"-I{headers}"]
        link = [str(linked), "-Wl,-rpath,$ORIGIN", "-Wl,-z,now"]
        subprocess.run([compiler, *flags, "-o", str(unfinished), str(sources[0]), *link], check=True)
        unfinished.replace(backend)

    def _built(self, folder: Path) -> Path:
        return folder / "backends" / self.backend / f"libtriton_{self.backend}.so"

    def _backends(self, setting: Setting) -> Path:
        del setting
        return self._built(HOME / self.home).parents[1]


class TritonPython(Tritonserver):
    """With ONNX Runtime in its Python backend: what the wheel alone can do."""

    name = "triton, python backend"
    backend = "python"
    unfair = (
        "each batch hops into a Python process and back, which costs CPU, and whoever can takes a backend in C++; "
        "deadlines as triton's"
    )

    def prepare(self, setting: Setting) -> Command:
        """As with any backend, and the script that it runs."""
        command = super().prepare(setting)
        # its stub passes no PYTHONPATH on
        found = f"import sys; sys.path.append({str(_site(HOME / self.home))!r})\n"
        for model in setting.models:
            script = setting.folder / "models" / model.name / "1/model.py"
            script.write_text(found + (INSIDE / "triton_model.py").read_text())
        return command

    def _backends(self, setting: Setting) -> Path:
        backends, wheel = setting.folder / "backends", _wheel(_site(HOME / self.home))
        shutil.copytree(wheel / "backends", backends)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        for stub in (wheel / "python_backend_stubs" / version).iterdir():
            shutil.copy(stub, backends / "python")
        return backends


def _site(environment: Path) -> Path:
    return next((environment / "lib").glob("python3*/site-packages"))


def _wheel(site: Path) -> Path:
    return site / "pytriton" / "tritonserver"


class MLServer(KServePeer):
    """Seldon's Python server."""

    name = "mlserver"
    home = "mlserver"
    packages: Sequence[str] = ("mlserver==1.7.1", "onnxruntime=={onnxruntime}")
    unfair = "one process, since the thread budget is one; it is made to be run with several"

    def prepare(self, setting: Setting) -> Command:
        """One process, no metrics, adaptive batching."""
        host = {"host": "127.0.0.1", "grpc_port": setting.port, "http_port": free_port(), "metrics_port": free_port()}
        quiet = {"debug": False, "use_structured_logging": False, "logging_settings": None, "metrics_endpoint": None}
        (setting.folder / "settings.json").write_text(json.dumps({**host, **quiet, "parallel_workers": 0}))
        for model in setting.models:
            folder = setting.folder / model.name
            folder.mkdir()
            shutil.copy(INSIDE / "mlserver_runtime.py", folder)
            settings = {
                "name": model.name,
                "implementation": "mlserver_runtime.OnnxRuntime",
                "max_batch_size": model.max_rows,
                "max_batch_time": 0.001,
                "parameters": {
                    "uri": str(setting.files[model.name]),
                    "version": "1",
                    "extra": {"threads": setting.threads},
                },
            }
            (folder / "model-settings.json").write_text(json.dumps(settings))
        return Command(
            [str(HOME / self.home / "bin/mlserver"), "start", str(setting.folder)], {"PYTHONPATH": str(INSIDE)}
        )


class TorchServe:
    """Java in front, a Python worker behind. Its KServe endpoint boxes every number: it is asked in its own words."""

    name = "torchserve"
    home = "torchserve"
    packages: Sequence[str] = ("torchserve==0.12.0", "onnxruntime=={onnxruntime}", "pyyaml>=6", "setuptools<81")
    unfair = (
        "no longer maintained; asked by its own protocol, raw tensors without names; its import of torch is met by an "
        "empty module, as nothing of it is used here"
    )
    reads_timeout = False

    def build(self, folder: Path) -> None:
        """Nothing."""

    def prepare(self, setting: Setting) -> Command:
        """One worker for each model, batches after at most a millisecond, warnings only in the log."""
        store = setting.folder / "store"
        models = {}
        for model in setting.models:
            folder = store / model.name
            (folder / "MAR-INF").mkdir(parents=True)
            shutil.copy(INSIDE / "torchserve_handler.py", folder)
            shutil.copy(setting.files[model.name], folder / "model.onnx")
            about = {"modelName": model.name, "modelVersion": "1.0", "handler": "torchserve_handler.py"}
            (folder / "MAR-INF/MANIFEST.json").write_text(
                json.dumps({"runtime": "python", "model": about, "archiverVersion": "0.12.0"})
            )
            one = {"defaultVersion": True, "marName": model.name, "minWorkers": 1, "maxWorkers": 1}
            models[model.name] = {
                "1.0": {**one, "batchSize": model.max_rows, "maxBatchDelay": 1, "responseTimeout": 60}
            }
        stand_in = setting.folder / "stand-in" / "torch"
        stand_in.mkdir(parents=True)
        (stand_in / "__init__.py").write_text("class Tensor:\n    pass\n")
        management, metrics, http, other = (free_port() for _ in range(4))
        snapshot = {"name": "startup.cfg", "modelCount": len(models), "models": models}
        config = setting.folder / "config.properties"
        config.write_text(
            f"inference_address=http://127.0.0.1:{http}\nmanagement_address=http://127.0.0.1:{management}\n"
            f"metrics_address=http://127.0.0.1:{metrics}\ngrpc_inference_address=127.0.0.1\n"
            f"grpc_inference_port={setting.port}\ngrpc_management_port={other}\nmodel_store={store}\n"
            "job_queue_size=1000\ndisable_system_metrics=true\ninstall_py_dep_per_model=false\n"
            "disable_token_authorization=true\nprefer_direct_buffer=true\n"
            f"model_snapshot={json.dumps(snapshot)}\n"
        )
        log = setting.folder / "log4j2.xml"
        log.write_text(_LOG4J)
        line = [
            str(HOME / self.home / "bin/torchserve"),
            "--start",
            "--foreground",
            "--ncs",
            "--ts-config",
            str(config),
        ]
        environment = {
            "PYTHONPATH": str(stand_in.parent), "PEER_THREADS": str(setting.threads),
            "LOG_LOCATION": str(setting.folder),
            "METRICS_LOCATION": str(setting.folder), "PATH": f"{HOME / self.home / 'bin'}:{os.environ['PATH']}",
            "TEMP": str(setting.folder),
        }  # fmt: skip
        return Command([*line, "--log-config", str(log)], environment)

    def body(self, kind: Kind, request: pb.ModelInferRequest) -> Body:
        """A PredictionsRequest: model_name = 1, and the map input = 3, which holds the raw tensor under "data"."""
        entry = _field(1, b"data") + _field(2, request.raw_input_contents[0])
        message = _field(1, request.model_name.encode()) + _field(3, entry)
        return Body(
            "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions", message, tuple(kind.metadata.items())
        )

    def outputs(self, answer: bytes) -> bytes:
        """A PredictionResponse has one field, bytes prediction = 1."""
        size, shift, at = 0, 0, 1
        while True:
            octet = answer[at]
            size |= (octet & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if octet < 0x80:
                return answer[at : at + size]


_LOG4J: Final = """<Configuration status="WARN"><Appenders><Console name="err" target="SYSTEM_ERR">
<PatternLayout pattern="%d %p %m%n"/></Console></Appenders>
<Loggers><Root level="warn"><AppenderRef ref="err"/></Root></Loggers></Configuration>
"""


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field of protobuf's wire format."""
    size, length = len(value), bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes((number << 3 | 2,)) + bytes(length) + value


PEERS: Final[Mapping[str, Peer]] = {
    "kairos": Kairos(),
    "triton": Triton(),
    "triton-python": TritonPython(),
    "mlserver": MLServer(),
    "torchserve": TorchServe(),
    "bare": Bare(),
}


def install(peer: Peer, versions: Mapping[str, str]) -> None:
    """Put the peer into its environment, unless it is there. RuntimeError or CalledProcessError where that fails."""
    if not peer.home:
        return
    wanted = [package.format_map(versions) for package in peer.packages]
    folder, stamp = HOME / peer.home, HOME / peer.home / ".installed"
    if not stamp.exists() or stamp.read_text().split("\n") != wanted:
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)
        stamp.write_text("\n".join(wanted))
    peer.build(folder)


class Died(RuntimeError):
    """A server has ended by itself."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server, started in a session of its own, to which all its processes belong."""

    session: int
    address: str
    process: subprocess.Popen[bytes]

    def check_alive(self) -> None:
        """Died, if its first process has ended: nobody will answer any more."""
        if (status := self.process.poll()) is not None:
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise Died(f"the server ended by itself with {how}")

    def cpu_s(self) -> float:
        """Seconds of CPU that all its processes have used, user and system, children that ended included."""
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.session:
                    total += sum(map(int, fields[11:15]))
        return total / _TICKS


@contextlib.contextmanager
def running(peer: Peer, setting: Setting) -> Iterator[Running]:
    """The peer, listening; all its processes are gone at the end. RuntimeError, with its log, if it does not start."""
    command = peer.prepare(setting)
    log = setting.folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command.line,
            env={**os.environ, "OMP_NUM_THREADS": str(setting.threads), **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=setting.folder if peer.home else ROOT,
            start_new_session=True,
        )
    try:
        _wait_until_listening(process, setting.port, log)
        yield Running(process.pid, f"127.0.0.1:{setting.port}", process)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    ends = time.monotonic() + _START_S
    while time.monotonic() < ends:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server does not listen on port {port}:\n{log.read_text(errors='replace')[-3000:]}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
