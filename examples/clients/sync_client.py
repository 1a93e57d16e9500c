"""Reads handwritten digits, one call after another, with Triton's stock client.

python examples/clients/sync_client.py --url 127.0.0.1:8001
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

HELD_OUT = Path(__file__).resolve().parents[1] / "digits" / "held_out.npz"


def read_digit(client: triton.InferenceServerClient, image: np.ndarray, version: str) -> np.ndarray:
    """Probabilities [10] of one image [1,8,8]."""
    tensor = triton.InferInput("image", [1, *image.shape], "FP32")
    tensor.set_data_from_numpy(image[None])
    answer = client.infer("digits", [tensor], version, [triton.InferRequestedOutput("probabilities")])
    return np.asarray(answer.as_numpy("probabilities")[0])


def drawing(image: np.ndarray) -> list[str]:
    """Eight lines of text, two characters a pixel."""
    return ["".join(" ░▒▓█"[int(pixel // 3.5)] * 2 for pixel in row) for row in image[0]]


def show(image: np.ndarray, probabilities: np.ndarray) -> None:
    """Draw the digit beside the three likeliest readings of it."""
    bars = [f"{digit}  {probabilities[digit]:6.1%}" for digit in np.argsort(-probabilities)[:3]]
    for line, text in zip(drawing(image), ["", "", *bars, "", "", ""], strict=True):
        print(f"   {line}   {text}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    with np.load(HELD_OUT, allow_pickle=False) as held_out:
        images, labels = held_out["images"].astype(np.float32), held_out["labels"]

    with triton.InferenceServerClient(url) as client:
        server = client.get_server_metadata()
        print(f"{server.name} {server.version} at {url}\n")
        show(images[8], read_digit(client, images[8], version=""))  # no version: the newest
        for version in client.get_model_metadata("digits").versions:
            latencies, read = [], []
            for image in images:
                started = time.perf_counter()
                read.append(read_digit(client, image, version).argmax())
                latencies.append(time.perf_counter() - started)
            wrong = [f"{label} as {digit}" for digit, label in zip(read, labels, strict=True) if digit != label]
            right = 1 - len(wrong) / len(images)
            print(f"\nversion {version}: {len(images)} images, {right:.2%} read correctly,", end=" ")
            print(f"{statistics.median(latencies) * 1e3:.2f} ms a call (median)")
            print(f"   read {', '.join(wrong[:6])}{', ...' if len(wrong) > 6 else ''}")


if __name__ == "__main__":
    try:
        main()
    except triton.InferenceServerException as error:
        sys.exit(str(error))
