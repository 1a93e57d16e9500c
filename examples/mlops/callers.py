"""Those who call: they show digits, get answers, and say later what the digits really were."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import grpc
import numpy as np

from examples.mlops.story import Answer, Story
from examples.mlops.world import Group, Style, World
from server.pb import feedback_pb2, grpc_service_pb2
from server.pb.feedback_pb2_grpc import FeedbackStub
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

TRUTH_COMES_S = 1.0
"""How long after an answer its outcome is known."""
REPORT_EVERY_S = 0.25
TRY_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a caller of a server that is killed, or that starts, is told."""
CALL_S = 60.0


class Callers:
    """One thread, one call after the other, at a steady rate. `group` and `styles` may be set at any time."""

    def __init__(self, url: str, world: World, story: Story, rate: float) -> None:
        self.group = Group.CALLERS
        self.styles: tuple[Style, ...] = (Style.CLEAN,)
        self.asked = 0
        """Calls so far; the next has this number in its id."""
        self.reported = 0
        """Outcomes that the server has taken."""
        self.problem = ""
        """A call that failed."""
        self._world, self._story, self._rate = world, story, rate
        self._random = np.random.default_rng(5)
        self._truths: deque[tuple[float, str, int]] = deque()
        self._channel = grpc.insecure_channel(url, [("grpc.max_reconnect_backoff_ms", 200)])
        self._infer = GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._feedback = FeedbackStub(self._channel)  # type: ignore[no-untyped-call]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="callers")
        self._thread.start()

    def stop(self) -> None:
        """Call no more, and say the last outcomes."""
        self._stop.set()
        self._thread.join()
        self._channel.close()

    def _run(self) -> None:
        due = report_at = time.monotonic()
        try:
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                self._call(f"q{self.asked}")
                self.asked += 1
                now = time.monotonic()
                due = max(due + 1 / self._rate, now - 0.1)  # no rush after a pause
                if now >= report_at:
                    self._report(time.time() - TRUTH_COMES_S)
                    report_at = now + REPORT_EVERY_S
            self._report(float("inf"))
        except grpc.RpcError as error:
            self.problem = str(error)

    def _call(self, identifier: str) -> None:
        styles = self.styles
        image, label = self._world.draw(self.group, styles[int(self._random.integers(len(styles)))], self._random)
        request = grpc_service_pb2.ModelInferRequest(model_name="digits", id=identifier)
        request.inputs.add(name="image", datatype="FP32", shape=[1, *image.shape])
        request.outputs.add(name="probabilities")
        request.raw_input_contents.append(image.tobytes())
        answer = self._ask(self._infer.ModelInfer, request)
        best = int(np.frombuffer(answer.raw_output_contents[0], np.float32).argmax())
        now = time.time()
        self._story.answers.append(Answer(now, answer.model_version, best == label))
        self._truths.append((now, identifier, label))

    def _report(self, until: float) -> None:
        """Say what is known by now."""
        request = feedback_pb2.ReportRequest()
        while self._truths and self._truths[0][0] <= until:
            _, identifier, label = self._truths.popleft()
            request.outcomes.add(model="digits", id=identifier, label=str(label))
        if request.outcomes:
            self._ask(self._feedback.Report, request)
            self.reported += len(request.outcomes)

    def _ask(self, method: Any, request: object) -> Any:  # noqa: ANN401  (grpc's methods have no types)
        """Once more as long as the server is away: calls and reports may be repeated."""
        until = time.monotonic() + CALL_S
        while True:
            try:
                return method(request, timeout=CALL_S, wait_for_ready=True)
            except grpc.RpcError as error:
                if error.code() not in TRY_AGAIN or time.monotonic() > until:
                    raise
                time.sleep(0.05)
