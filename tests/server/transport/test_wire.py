"""Messages that would grow when they are read."""

from __future__ import annotations

from random import Random

import pytest

from engines.errors import TooLarge
from server.pb import grpc_service_pb2 as pb
from server.transport.wire import MOST_FIELDS, UNSEEN_BYTES, bounded, check_fields

read = bounded(pb.ModelInferRequest.FromString)


@pytest.mark.parametrize("field", [b"\x2a\x00", b"\x32\x00", b"\x3a\x00", b"\x22\x02\x0a\x00", b"\xf8\x07\x01"])
def test_fields_without_end_are_not_even_read(field: bytes) -> None:
    with pytest.raises(TooLarge, match=f"more than {MOST_FIELDS} inputs"):
        read(field * UNSEEN_BYTES)


def test_ordinary_messages_pass_however_long_they_are() -> None:
    message = pb.ModelInferRequest(model_name="m", id="1")
    for number in range(MOST_FIELDS // 2 - 2):
        message.inputs.add(name=str(number), datatype="FP32", shape=[1, 100])
        message.raw_input_contents.append(bytes(400))
    data = message.SerializeToString()
    assert len(data) > UNSEEN_BYTES
    assert read(data) == message


def test_bytes_that_make_no_sense_are_left_to_protobuf() -> None:
    random = Random(1)
    for _ in range(2000):
        data = random.randbytes(random.randint(0, 200))
        check_fields(data)
    for data in (b"\xff" * 200_000, b"\x0b" * 200_000, b"\x3a\xff\xff\xff\xff\x7f" + bytes(10)):
        check_fields(data)
