"""What one would write oneself: grpc.aio, protobuf, ONNX Runtime, a thread. No batching, no checks.

python bare_server.py PORT THREADS NAME=FILE ...
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import onnxruntime

from server.pb import grpc_service_pb2 as pb
from server.pb import grpc_service_pb2_grpc as pb_grpc

TYPES = {"FP32": np.float32, "INT64": np.int64}


class Service(pb_grpc.GRPCInferenceServiceServicer):
    """ModelInfer, and that is all."""

    def __init__(self, threads: int, files: dict[str, str]) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        self._sessions = {
            name: onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
            for name, file in files.items()
        }
        self._pool = ThreadPoolExecutor(1)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """One execution for each request."""
        del context
        session = self._sessions[request.model_name]
        told = request.inputs[0]
        rows = np.frombuffer(request.raw_input_contents[0], TYPES[told.datatype]).reshape(told.shape)
        run = asyncio.get_running_loop().run_in_executor
        (answers,) = await run(self._pool, session.run, None, {told.name: rows})
        reply = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        reply.outputs.add(name=session.get_outputs()[0].name, datatype="FP32", shape=answers.shape)
        reply.raw_output_contents.append(answers.tobytes())
        return reply


async def main() -> None:
    """Serve until the process is ended."""
    port, threads, *models = sys.argv[1:]
    server = grpc.aio.server()
    files = dict(model.split("=", 1) for model in models)
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(Service(int(threads), files), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    except ImportError:
        asyncio.run(main())
