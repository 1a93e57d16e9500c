"""Two requests have the same key exactly when they are the same question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.request import InferRequest
from engines.tensor import DType, Tensor
from server.cache.key import NEUTRAL, Keys
from tests.server.cache.support import SPEC

NAMES = st.text(max_size=3)
TENSORS = st.builds(
    Tensor, NAMES, st.sampled_from(DType), st.lists(st.integers(0, 3), max_size=3).map(tuple), st.binary(max_size=6)
)
VALUES = st.booleans() | st.integers(-2, 2) | st.integers(0, 2**64 - 1) | st.floats(allow_nan=False) | NAMES
REQUESTS = st.builds(
    InferRequest, model=st.just("m"), version=st.just(1),
    inputs=st.lists(TENSORS, max_size=3, unique_by=lambda tensor: tensor.name).map(tuple),
    wanted=st.lists(NAMES, min_size=1, max_size=3, unique=True).map(tuple),
    parameters=st.dictionaries(NAMES | st.sampled_from(sorted(NEUTRAL)), VALUES, max_size=3),
)  # fmt: skip
SPECS = st.builds(
    replace, st.just(SPEC), name=NAMES, version=st.integers(0, 20), digest=st.text("0123456789abcdef", min_size=1)
)


def meaning(request: InferRequest) -> Any:
    parameters = {
        name: (type(value).__name__, repr(value)) for name, value in request.parameters.items() if name not in NEUTRAL
    }
    return {tensor.name: tensor for tensor in request.inputs}, request.wanted, parameters


@settings(deadline=None)
@given(REQUESTS, REQUESTS)
def test_any_two_requests(one: InferRequest, other: InferRequest) -> None:
    keys = Keys(SPEC, b"")
    assert (keys.key(one) == keys.key(other)) == (meaning(one) == meaning(other))


@settings(deadline=None)
@given(REQUESTS, st.data())
def test_any_one_change(request: InferRequest, data: st.DataObject) -> None:
    changed = data.draw(changes(request))
    keys = Keys(SPEC, b"")
    assert (keys.key(request) == keys.key(changed)) == (meaning(request) == meaning(changed))


@settings(deadline=None)
@given(REQUESTS, st.randoms())
def test_any_order_of_inputs_and_parameters(request: InferRequest, rand: Any) -> None:
    inputs = list(request.inputs)
    rand.shuffle(inputs)
    names = list(request.parameters)
    rand.shuffle(names)
    shuffled = replace(request, inputs=tuple(inputs), parameters={name: request.parameters[name] for name in names})
    keys = Keys(SPEC, b"")
    assert keys.key(request) == keys.key(shuffled)


@settings(deadline=None)
@given(SPECS, SPECS, REQUESTS)
def test_any_two_models(one: Any, other: Any, request: InferRequest) -> None:
    same = (one.name, one.version, one.digest) == (other.name, other.version, other.digest)
    assert (Keys(one, b"").key(request) == Keys(other, b"").key(request)) == same


def changes(request: InferRequest) -> st.SearchStrategy[InferRequest]:
    """The request with one thing other than it was."""
    ways: list[st.SearchStrategy[InferRequest]] = [
        st.builds(lambda name: replace(request, wanted=(*request.wanted, name)), NAMES),
        st.builds(lambda name, value: replace(request, parameters={**request.parameters, name: value}), NAMES, VALUES),
    ]
    for position, tensor in enumerate(request.inputs):

        def put(changed: Tensor, position: int = position) -> InferRequest:
            return replace(request, inputs=(*request.inputs[:position], changed, *request.inputs[position + 1 :]))

        ways += [
            st.builds(lambda data, t=tensor, put=put: put(replace(t, data=data)), st.binary(max_size=6)),
            st.builds(lambda dtype, t=tensor, put=put: put(replace(t, dtype=dtype)), st.sampled_from(DType)),
            st.builds(lambda size, t=tensor, put=put: put(replace(t, shape=(*t.shape, size))), st.integers(0, 3)),
        ]
    return st.one_of(ways)
