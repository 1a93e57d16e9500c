"""Reads a row of handwritten digits over one stream; the answers arrive in the order of the questions.

python examples/clients/streaming_client.py --url 127.0.0.1:8001 --count 60
"""

from __future__ import annotations

import argparse
import queue
import sys
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

HELD_OUT = Path(__file__).resolve().parents[1] / "digits" / "held_out.npz"

Answer = tuple[triton.InferResult | None, triton.InferenceServerException | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server (default: %(default)s)")
    parser.add_argument("--count", type=int, default=60, help="how many digits to read (default: %(default)s)")
    arguments = parser.parse_args()
    with np.load(HELD_OUT, allow_pickle=False) as held_out:
        images = held_out["images"][: arguments.count].astype(np.float32)
        labels = held_out["labels"][: arguments.count]

    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    with triton.InferenceServerClient(arguments.url) as client:
        if not client.is_model_ready("digits"):
            sys.exit(f"{arguments.url} does not serve the model digits")
        client.start_stream(lambda result, error: answers.put((result, error)))
        started = time.perf_counter()
        for index, image in enumerate(images):
            tensor = triton.InferInput("image", [1, *image.shape], "FP32")
            tensor.set_data_from_numpy(image[None])
            client.async_stream_infer("digits", [tensor], request_id=str(index))
        wrong = 0
        print("written: ", *labels, sep="")
        print("read:    ", end="")
        for index, label in enumerate(labels):
            result, error = answers.get(timeout=30)
            if result is None:
                raise error or RuntimeError("an answer without result and without error")
            if result.get_response().id != str(index):
                sys.exit(f"\nanswer {result.get_response().id} came where {index} was due")
            digit = result.as_numpy("probabilities").argmax()
            wrong += int(digit != label)
            print(digit, end="", flush=True)
        took_s = time.perf_counter() - started
        client.stop_stream()
    print(f"\n{len(labels)} digits in order over one stream in {took_s * 1e3:.0f} ms, {wrong} misread")


if __name__ == "__main__":
    try:
        main()
    except triton.InferenceServerException as error:
        sys.exit(str(error))
