"""Calls the server with nothing but the generated stubs: raw tensors, labelled top three, strings.

python examples/clients/stub_client.py --url 127.0.0.1:8001

Any language's stubs of protos/grpc_service.proto are used in the same way.
"""

from __future__ import annotations

import argparse
import struct
import sys
from pathlib import Path

import grpc
import numpy as np

from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

HELD_OUT = Path(__file__).resolve().parents[1] / "digits" / "held_out.npz"
LINES = ("Will it rain TOMORROW?", "Nobody KNOWS.", "Zwölf Boxkämpfer")
DEADLINE_S = 5.0


def join_strings(strings: list[bytes]) -> bytes:
    """Raw form of a BYTES tensor: each element behind its length, a little-endian uint32."""
    return b"".join(struct.pack("<I", len(string)) + string for string in strings)


def split_strings(raw: bytes) -> list[bytes]:
    """Undo `join_strings`."""
    strings, start = [], 0
    while start < len(raw):
        (length,) = struct.unpack_from("<I", raw, start)
        strings.append(raw[start + 4 : start + 4 + length])
        start += 4 + length
    return strings


def classify(stub: GRPCInferenceServiceStub, images: np.ndarray) -> list[list[str]]:
    """Name the three likeliest readings of each image [N,1,8,8] as the server does: score:index:label."""
    request = pb.ModelInferRequest(model_name="digits", id="three-digits")
    request.inputs.add(name="image", datatype="FP32", shape=images.shape)
    request.raw_input_contents.append(images.astype("<f4").tobytes())
    wanted = request.outputs.add(name="probabilities")
    wanted.parameters["classification"].int64_param = 3
    answer = stub.ModelInfer(request, timeout=DEADLINE_S)
    readings = [reading.decode() for reading in split_strings(answer.raw_output_contents[0])]
    return [readings[row : row + 3] for row in range(0, len(readings), 3)]


def analyse(stub: GRPCInferenceServiceStub, lines: list[bytes]) -> list[tuple[str, int, bool]]:
    """Lower case, number of words, and whether it is a question, of each line."""
    request = pb.ModelInferRequest(model_name="text")
    request.inputs.add(name="text", datatype="BYTES", shape=[len(lines), 1])
    request.raw_input_contents.append(join_strings(lines))
    answer = stub.ModelInfer(request, timeout=DEADLINE_S)
    raw = {tensor.name: raw for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)}
    lower = [string.decode() for string in split_strings(raw["lower"])]
    words = np.frombuffer(raw["words"], "<i8").tolist()
    return list(zip(lower, words, np.frombuffer(raw["is_question"], np.bool_).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8001", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    with np.load(HELD_OUT, allow_pickle=False) as held_out:
        images, labels = held_out["images"][:3].astype(np.float32), held_out["labels"][:3]

    with grpc.insecure_channel(url) as channel:
        stub = GRPCInferenceServiceStub(channel)
        readings = classify(stub, images)
        print("Three images in one request, the three likeliest readings of each:")
        for label, likeliest in zip(labels, readings, strict=True):
            parts = [reading.split(":") for reading in likeliest]
            print(f"   a {label}:  " + "   ".join(f"{name} {float(score):.4f}" for score, _, name in parts))
        print("Three strings in one request:")
        for lower, words, is_question in analyse(stub, [line.encode() for line in LINES]):
            print(f"   {lower!r}: {words} words, {'a question' if is_question else 'no question'}")


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
