"""Locust users of a gRPC model server: each call is an event of Locust's, with its status, and has a true deadline.

    locust -f loadtest/locust/locustfile.py --host 127.0.0.1:8001                       # web page on port 8089
    locust -f loadtest/locust/locustfile.py --host 127.0.0.1:8001 --headless -u 20 -t 10s

Locust's users wait for their answers, so this is a closed loop: it shows what so many users would live through, and
not what becomes of a server that is asked faster than it answers. `python -m loadtest` shows that.
"""

from __future__ import annotations

import time
from typing import Any

import grpc
import numpy as np
from grpc.experimental import gevent as grpc_gevent
from locust import User, between, events, task

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

grpc_gevent.init_gevent()  # before the first channel: calls then yield to other users


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:  # noqa: ANN401 - Locust's own parser, on the web page as well
    parser.add_argument("--model", default="digits", help="The model that is asked")
    parser.add_argument("--deadline-ms", type=float, default=100.0, help="Deadline of each call")
    parser.add_argument("--rows", type=int, default=1, help="Rows of each request")


class InferUser(User):  # type: ignore[misc]  # Locust carries no types
    """Asks a model, reads the answer, thinks for a moment, and asks again."""

    wait_time = between(0.0, 0.01)

    def on_start(self) -> None:
        """Open a connection of its own, as users on many machines would have."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(self.host, options=options)
        self.stub = GRPCInferenceServiceStub(self.channel)
        chosen = self.environment.parsed_options
        self.timeout_s = chosen.deadline_ms / 1e3
        told = self.stub.ModelMetadata(pb.ModelMetadataRequest(name=chosen.model), timeout=10.0)
        (wanted,) = told.inputs
        shape = [chosen.rows, *wanted.shape[1:]]
        self.request = pb.ModelInferRequest(model_name=chosen.model)
        self.request.inputs.add(name=wanted.name, datatype=wanted.datatype, shape=shape)
        values = np.random.default_rng().uniform(0, 16, shape).astype(np.float32)
        self.request.raw_input_contents.append(values.tobytes())

    def on_stop(self) -> None:
        self.channel.close()

    @task
    def infer(self) -> None:
        """One call. A status other than OK is a failure of Locust's, by the status's name."""
        began = time.perf_counter()
        answer, failure = None, None
        try:
            answer = self.stub.ModelInfer(self.request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            failure = Failed(error.code().name)
        self.environment.events.request.fire(
            request_type="grpc",
            name=f"ModelInfer {self.request.model_name}",
            response_time=(time.perf_counter() - began) * 1e3,
            response_length=0 if answer is None else answer.ByteSize(),
            response=answer,
            context={},
            exception=failure,
        )


class Failed(Exception):
    """A status other than OK. Locust counts equal texts together."""
