"""Keys: what is part of them, what is not, and what is never cached."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.request import InferRequest
from engines.spec import ModelSpec
from engines.tensor import DType, Tensor
from server.cache.key import Keys, cacheable, subkey
from tests.server.cache.support import SPEC, request

SECRET = b"secret"
TWO = (Tensor("A", DType.INT32, (1, 1), b"\1\0\0\0"), Tensor("B", DType.INT32, (1, 1), b"\2\0\0\0"))


def key(asked: InferRequest, spec: ModelSpec = SPEC, secret: bytes = SECRET) -> bytes:
    return Keys(spec, secret).key(asked)


def test_a_key_has_256_bits_and_is_the_same_in_every_process() -> None:
    # Replicas of different age share answers: if this changes, the layout tag must change with it.
    assert key(request()).hex() == "bffb50af7ce9b96135bcde6735a0e9274f8d8b45316f292d059e610e68fae0cc"


@pytest.mark.parametrize(
    "same", [{"id": "7"}, {"deadline": 12.0}, {"priority": 2}, {"trace": "00-ab-cd-01"}, {"parameters": {"timeout": 5}}]
)
def test_what_does_not_change_the_answer_does_not_change_the_key(same: dict[str, object]) -> None:
    assert key(replace(request(), **same)) == key(request())  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [{"name": "triple"}, {"version": 2}, {"digest": "00fe"}])
def test_another_model_has_other_keys(other: dict[str, object]) -> None:
    assert key(request(), replace(SPEC, **other)) != key(request())  # type: ignore[arg-type]


def test_another_runtime_has_other_keys() -> None:
    assert Keys(SPEC, SECRET, "onnxruntime 1.30 on x86_64").key(request()) != key(request())


def test_another_secret_has_other_keys() -> None:
    assert key(request(), secret=b"other") != key(request())
    assert subkey(b"s", "key") != subkey(b"s", "value")


def test_the_order_of_the_inputs_does_not_matter_and_that_of_the_outputs_does() -> None:
    asked = replace(request(), inputs=TWO)
    assert key(asked) == key(replace(asked, inputs=TWO[::-1]))
    both = replace(asked, wanted=("X", "Y"))
    assert key(both) != key(replace(both, wanted=("Y", "X")))


def test_bytes_cannot_move_from_one_input_to_its_neighbour() -> None:
    def split(at: int) -> InferRequest:
        data = b"abcdef"
        return replace(
            request(),
            inputs=(Tensor("A", DType.BYTES, (1, 1), data[:at]), Tensor("B", DType.BYTES, (1, 1), data[at:])),
        )

    assert len({key(split(at)) for at in range(7)}) == 7


def test_shape_and_type_tell_apart_what_has_the_same_bytes() -> None:
    tensors = [
        Tensor("IN", DType.UINT8, (1, 4), b"aaaa"), Tensor("IN", DType.UINT8, (2, 2), b"aaaa"),
        Tensor("IN", DType.INT8, (1, 4), b"aaaa"), Tensor("IN", DType.INT32, (1,), b"aaaa"),
        Tensor("IN", DType.INT32, (1, 1), b"aaaa"),
    ]  # fmt: skip
    assert len({key(replace(request(), inputs=(tensor,))) for tensor in tensors}) == len(tensors)


def test_parameters_are_told_apart_by_type() -> None:
    values = [True, False, 1, 0, 1.0, 0.0, "1", "True", "", 2**64 - 1, -1]
    keys = {key(request(parameters={"temperature": value})) for value in values}
    assert len(keys | {key(request())}) == len(values) + 1


def test_remembered_encodings_never_leak_between_requests() -> None:
    keys = Keys(SPEC, SECRET)
    fresh = {size: key(request(b"a" * size)) for size in (1, 2, 1500, 3000)}
    for size in [*range(1, 3001), 1, 2]:
        made = keys.key(request(b"a" * size))
        assert made == fresh.get(size, made)


def test_a_model_without_a_digest_cannot_be_cached() -> None:
    with pytest.raises(ValueError, match="model 'double' version 1 has no digest"):
        Keys(replace(SPEC, digest=""), SECRET)


def test_sequences_and_those_who_ask_for_it_are_not_cached() -> None:
    assert cacheable({})
    assert cacheable({"timeout": 3, "kairos_cache_bypass": False})
    assert not cacheable({"kairos_cache_bypass": True})
    assert not cacheable({"sequence_id": 0})
    assert not cacheable({"sequence_end": False})
