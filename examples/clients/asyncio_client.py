"""Sends many calls at once, each with a deadline of its own, and counts the answers that came in time.

    python examples/clients/asyncio_client.py --url 127.0.0.1:8001 --callers 32

The deadline travels with the call: a server that honours it neither starts work that is already too late
nor keeps a caller waiting for it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as triton

HELD_OUT = Path(__file__).resolve().parents[1] / "digits" / "held_out.npz"


async def read_digit(client: triton.InferenceServerClient, image: np.ndarray, deadline_s: float) -> int | None:
    """Read the digit on one image [1,8,8]; None when the deadline passed first."""
    tensor = triton.InferInput("image", [1, *image.shape], "FP32")
    tensor.set_data_from_numpy(image[None])
    wanted = [triton.InferRequestedOutput("probabilities")]
    try:
        answer = await client.infer("digits", [tensor], outputs=wanted, client_timeout=deadline_s)
    except triton.InferenceServerException as error:
        if error.status() == "StatusCode.DEADLINE_EXCEEDED":
            return None
        raise
    return int(answer.as_numpy("probabilities").argmax())


async def send_all(
    client: triton.InferenceServerClient, images: np.ndarray, callers: int, deadline_s: float
) -> list[int | None]:
    """Read every image, never more than `callers` at a time."""
    free = asyncio.Semaphore(callers)

    async def one(image: np.ndarray) -> int | None:
        async with free:
            return await read_digit(client, image, deadline_s)

    return await asyncio.gather(*(one(image) for image in images))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=32, help="calls in flight at once (default: %(default)s)")
    parser.add_argument("--deadlines-ms", type=float, nargs="+", default=[1, 2, 5, 20, 100], help="one round for each")
    arguments = parser.parse_args()
    with np.load(HELD_OUT, allow_pickle=False) as held_out:
        images, labels = held_out["images"].astype(np.float32), held_out["labels"]

    async with triton.InferenceServerClient(arguments.url) as client:
        await read_digit(client, images[0], deadline_s=10)  # connects, so that no round pays for it
        print(f"{len(images)} images a round, {arguments.callers} calls in flight")
        for deadline_ms in arguments.deadlines_ms:
            started = time.perf_counter()
            read = await send_all(client, images, arguments.callers, deadline_ms / 1e3)
            took_s = time.perf_counter() - started
            in_time = sum(digit is not None for digit in read) / len(images)
            right = sum(digit == label for digit, label in zip(read, labels, strict=True))
            bar = "█" * round(30 * in_time)
            print(f"{deadline_ms:6g} ms  {bar:░<30}  {in_time:6.1%} in time,", end=" ")
            print(f"{right} read correctly, {len(images) / took_s:.0f} calls/s")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except triton.InferenceServerException as error:
        sys.exit(str(error))
