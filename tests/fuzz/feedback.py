"""The RPCs of our own services: feedback, rollouts, the watch and the recorder, over a real server without callers.

Whatever operators and reporters send: what is written can be read at the next start, and requests are answered.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from grpc import StatusCode

from engines.repository.manager import ControlMode, RepositoryOptions
from server.app import Server, ServerOptions
from server.pb import feedback_pb2 as feedback
from server.pb import rollout_pb2 as rollout
from server.pb.feedback_pb2_grpc import add_FeedbackServicer_to_server
from server.pb.rollout_pb2_grpc import add_RolloutServicer_to_server
from server.pb.traffic_pb2 import ArrivalsRequest
from server.pb.traffic_pb2_grpc import add_TrafficServicer_to_server
from server.pb.watch_pb2 import WatchStatusRequest
from server.pb.watch_pb2_grpc import add_WatchServicer_to_server
from server.rollout.store import RolloutStore
from server.transport.feedback import FeedbackService
from server.transport.listen import ListenOptions
from server.transport.rollout import RolloutService
from server.transport.service import InferenceService, ServiceOptions
from server.transport.status import StatusCodes
from server.transport.traffic import TrafficService
from server.transport.watch import WatchService
from server.watch.outcomes import Prediction
from tests.fuzz.rpcs import Aborted, Calls, Context, Faults, one
from tests.fuzz.target import Target
from tests.support import onnx_models
from tests.support.calls import row
from tests.support.methods import Method, methods_of
from tests.support.repositories import ONE_ENGINE

_WORDS: Final = (
    *("m", "n", "a", "b", "c", "", "0", "1", "2", "one", "two", "x", "y", "clicks", "revenue"),
    *("auto", "tenant", "id", "parameter:", "parameter:x", "metadata:", "metadata:Key", "salt"),
)
_CONFIG: Final = f"""max_batch_size: 4
version_policy {{ all {{}} }}
watch {{ enable: true window_rows: 50 }}
{ONE_ENGINE}"""
_PREDICTIONS: Final = tuple(
    Prediction("m", id_, row, version, 1e9 + number, number % 3, ("one", "two", "")[number % 3], 0.5 + number / 50)
    for number, (id_, row, version) in enumerate((i, r, v) for i in "abc" for r in (0, 1) for v in (1, 2))
)
_FAST: Final = Path("/dev/shm")
"""Each report waits for the disk."""
_UNFORESEEN: Final = (StatusCode.INTERNAL, StatusCode.UNKNOWN)


class _Stage:
    """A server with a watched model of two versions, kept for all inputs; each input leaves it as it was."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        logging.getLogger("server.rollout").setLevel(logging.ERROR)
        self.faults = Faults("server", "engines.local", "engines.pool", "asyncio")
        self.folder = Path(tempfile.mkdtemp(prefix="kairos-fuzz-", dir=_FAST if _FAST.is_dir() else None))
        self.methods: list[Method] = self.loop.run_until_complete(self.set_up())

    async def set_up(self) -> list[Method]:
        onnx_models.write(self.folder / "models", "m", (1, 2), proto=onnx_models.scale(), config=_CONFIG)
        roots = (self.folder / "models",)
        repository = RepositoryOptions(roots=roots, mode=ControlMode.EXPLICIT, startup_models=("m",))
        listen = ListenOptions(port=0)
        options = ServerOptions(
            repository=repository, listen=listen, metrics_port=None, state_dir=self.folder / "state"
        )
        self.server = server = Server(options)
        await server.start()
        assert server.feedback.store is not None, "a watched model's predictions are recorded"
        self.outcomes = server.feedback.store
        self.outcomes.record(_PREDICTIONS)
        self.inference = InferenceService(
            server.models, server.lifecycle, server.regions, server.telemetry, server.logs, ServiceOptions()
        )
        for _ in range(20):
            await self.ask()
        self.feedback = FeedbackService(server.feedback)
        codes = StatusCodes.KAIROS
        arrivals = TrafficService(server.models, server.lifecycle, codes)
        return [
            *methods_of(add_FeedbackServicer_to_server, self.feedback),
            *methods_of(add_RolloutServicer_to_server, RolloutService(server.rollouts, codes)),
            *methods_of(add_WatchServicer_to_server, WatchService(server.models)),
            *methods_of(add_TrafficServicer_to_server, arrivals),
        ]

    async def ask(self) -> None:
        """A request of somebody who has nothing to do with all this."""
        answer = await self.inference.ModelInfer(row((1, 2, 3, 4) * 3, "m"), Context())
        assert answer.outputs[0].shape[0] == 3

    async def play(self, method: Method, request: Any) -> None:
        rollouts = self.server.rollouts
        if method.path.endswith((".Rollout/Promote", ".Rollout/Abort", ".Rollout/Status")):
            await rollouts.start("m", 2, 1)
        try:
            await self.call(method, request)
        except Aborted as error:
            if error.code in _UNFORESEEN and not error.details.startswith("failed to load "):
                raise
        if ".Rollout/" in method.path:
            await self.ask()
            RolloutStore(self.folder / "state").read(lambda _: None)
            for found in rollouts.status():
                rollouts.abort(found.rollout.model, forget=True)
        elif "/Report" in method.path:
            await self.feedback.Status(feedback.FeedbackStatusRequest(), Context())
            wiped = self.outcomes._database.submit(lambda connection: connection.execute("DELETE FROM outcomes"))
            await asyncio.wrap_future(wiped)

    async def call(self, method: Method, request: Any) -> None:
        """One call, and the first message of an answer that has many."""
        answer = method.function(one(request) if method.handler.request_streaming else request, Context())
        if not method.handler.response_streaming:
            method.handler.response_serializer(await answer)
            return
        try:
            async for reply in answer:
                method.handler.response_serializer(reply)
                break
        finally:
            await answer.aclose()
        assert not any(model.engines._listeners for model in self.server.models.served()), "nobody listens any more"

    def close(self) -> None:
        self.loop.run_until_complete(self.server.drain())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)


_STAGE: Final = _Stage()
_CALLS: Final = Calls(_STAGE.methods, _WORDS)


def run(data: bytes) -> None:
    """One call."""
    call = _CALLS.read(data)
    if call is not None:
        _STAGE.loop.run_until_complete(_STAGE.play(*call))
        _STAGE.faults.check(call[0].path)


def seeds() -> list[bytes]:
    """An empty request of each method, outcomes of all kinds, and a rollout with everything said."""
    outcome = feedback.Outcome
    outcomes = [outcome(model="m", id=id_, row=row, label="one") for id_ in "abc" for row in (0, 1)]
    outcomes += [outcome(model="m", id=id_, metric="clicks", value=2.5, time=1e9) for id_ in "abc"]
    outcomes.append(outcome(model="m", id="d", label="two", metric="revenue", value=-1.0))
    start = rollout.RolloutStartRequest(
        model="m", candidate=2, stable=1, steps=[0, 0.5, 1], step_seconds=1, samples=5, split_by="parameter:x",
        salt="salt", no_retry=True, no_signals=True,
        limits=rollout.RolloutLimits(
            error_increase=0.1, latency_ratio=2, latency_slack_seconds=0.1, agreement=0.5, false_alarm=0.1
        ),
        comparing=rollout.RolloutComparing(output="y", absolute=1e-3, relative=1e-2),
        shadowing=rollout.RolloutShadowing(sample=1, in_flight=2, bytes_in_flight=2**20, deadline_seconds=1),
    )  # fmt: skip
    return _CALLS.seeds(
        ("/Report", feedback.ReportRequest(outcomes=outcomes)),
        ("/ReportStream", feedback.ReportRequest(outcomes=outcomes[-2:])),
        ("Feedback/Status", feedback.FeedbackStatusRequest(model="m")),
        ("/Start", start),
        ("/Start", rollout.RolloutStartRequest(model="m", candidate=2)),
        ("/Promote", rollout.RolloutPromoteRequest(model="m")),
        ("/Abort", rollout.RolloutAbortRequest(model="m", forget=True)),
        ("Rollout/Status", rollout.RolloutStatusRequest(model="m")),
        ("Watch/Status", WatchStatusRequest(model="m", details=True)),
        ("/Arrivals", ArrivalsRequest(model="m", version="1")),
    )


TARGET: Final = Target(name="feedback", run=run, mutate=_CALLS.mutate, seeds=seeds, close=_STAGE.close)
