"""The seam between running models and serving them."""

from __future__ import annotations

from typing import Protocol

from engines.request import InferRequest, InferResponse


class Inference(Protocol):
    """Answers requests. Local pools, caches, meters, taps and routers all look like this, and are stacked."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer, or raise an `InferError`.

        Cancelling the awaiting task withdraws the request: queued work leaves the queue, running work finishes
        for its neighbours and its row is dropped.
        """
        ...
