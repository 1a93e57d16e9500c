"""The quick way for requests that repeat one byte for byte: no parsing, no checks, no key.

Rule: a recalled answer is one that the long way would give now. So the same version must answer the same name, and the
answer must still be in the memory of its cache, as the very one that was serialised; whatever differs takes the long
way. Requests whose answers do not come from that memory never come here: those with inputs in shared memory, those that
bypass the cache, and all of models above whose cache somebody wants to see every request.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import grpc

from engines.errors import InferError
from engines.request import Origin
from server.cache.cached import Remembered
from server.cache.replies import Replies, Reply
from server.pb import grpc_service_pb2 as pb
from server.transport.model import ServedModel
from server.transport.service import Answer, Call, InferenceService, Models, Tracer

METHOD: Final = "ModelInfer"


@dataclass(frozen=True, slots=True)
class _Source:
    """Whose answer it is, under which name it was asked for, and which of the cache's."""

    model: ServedModel
    name: str
    version: str
    remembered: Remembered


class Recallable(NamedTuple):
    """What is known of a request without its message, in the message's own words: it names no shared memory."""

    model_name: str
    inputs: tuple[()] = ()
    outputs: tuple[()] = ()


_Asked: TypeAlias = "tuple[bytes, pb.ModelInferRequest] | Reply[_Source]"


def subject(asked: _Asked) -> pb.ModelInferRequest | Recallable:
    """What a request is about, for those who decide whether it may be answered."""
    return Recallable(asked.source.name) if isinstance(asked, Reply) else asked[1]


class Recall:
    """Stands before the service's ModelInfer."""

    def __init__(self, service: InferenceService, models: Models, tracer: Tracer, limit_bytes: int) -> None:
        self._service = service
        self._models = models
        self._tracer = tracer
        self._replies: Replies[_Source] = Replies(limit_bytes)

    def __repr__(self) -> str:
        return f"<Recall {self._replies}>"

    def handler(self) -> Any:  # noqa: ANN401  (grpc's own type is generic in both messages)
        """For ModelInfer, in place of the generated one."""
        return grpc.unary_unary_rpc_method_handler(
            self.infer, request_deserializer=self._read, response_serializer=_serialize
        )

    def _read(self, raw: bytes) -> _Asked:
        reply = self._replies.get(raw)
        return (raw, pb.ModelInferRequest.FromString(raw)) if reply is None else reply

    async def infer(self, asked: _Asked, context: Call) -> bytes | pb.ModelInferResponse:
        """Answer one request, the quick way where it can be."""
        if isinstance(asked, Reply):
            message = self._recall(asked, context)
            if message is not None:
                return message
            self._replies.drop(asked.raw)
            raw, request = asked.raw, pb.ModelInferRequest.FromString(asked.raw)
        else:
            raw, request = asked
        try:
            answer = await self._service.answer(request, context)
        except Exception as error:  # noqa: BLE001  (as in ModelInfer)
            await self._service.abort(context, error, request.id)
        if answer.origin is Origin.CACHE:
            return self._remember(raw, request, answer)
        return answer.message

    def _recall(self, reply: Reply[_Source], context: Call) -> bytes | None:
        began = time.monotonic()
        source = reply.source
        if self._tracer.sampling or self._service.draining:
            return None
        try:
            with self._models.borrow(source.name, source.version) as model:
                stands = self._stands(source, model, context, began)
        except InferError:
            return None
        return reply.message if stands else None

    def _stands(self, source: _Source, model: ServedModel, context: Call, began: float) -> bool:
        """Whether the model that was borrowed would answer the same; then the request is counted as answered."""
        cache = model.recalls
        if model is not source.model or cache is None:
            return False
        now = asyncio.get_running_loop().time()
        if not cache.recall(source.remembered, began, now):
            return False
        left_s = context.time_remaining()
        deadline = now + (model.default_deadline_s if left_s is None or left_s == math.inf else left_s)
        model.meter.remembered_answer(deadline, Origin.CACHE, now - began, now)
        return True

    def _remember(self, raw: bytes, request: pb.ModelInferRequest, answer: Answer) -> bytes:
        message = answer.message.SerializeToString()
        cache = answer.model.recalls
        if cache is not None and (remembered := cache.remembered(answer.asked)) is not None:
            source = _Source(answer.model, request.model_name, request.model_version, remembered)
            self._replies.put(raw, message, source)
        return message


class Replacing:
    """Stands before a gRPC server while the service's handlers are registered, and puts one in another's place."""

    def __init__(self, server: Any, handler: Any) -> None:  # noqa: ANN401  (either transport)
        self._server = server
        self._handler = handler

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """As a gRPC server has it."""
        handlers = {**handlers, METHOD: self._handler}
        self._server.add_registered_method_handlers(service, handlers)
        # grpc.aio only serves generic handlers.
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def add_generic_rpc_handlers(self, handlers: Any) -> None:  # noqa: ANN401
        """Nothing: generated code registers the same handlers by name."""


def _serialize(message: bytes | pb.ModelInferResponse) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
