"""The two tables of status codes, and what goes with an error."""

from __future__ import annotations

import math

import pytest
from grpc import StatusCode

from engines import errors
from engines.errors import InferError
from server.transport.status import STATUS, TRITON, StatusCodes, text_of, trailers_of


def _all(kind: type[InferError] = InferError) -> set[type[InferError]]:
    return {kind}.union(*(_all(below) for below in kind.__subclasses__()))


ERRORS = sorted(_all() - {InferError}, key=lambda kind: kind.__name__)
NOT_MINE = {StatusCode.OK, StatusCode.UNKNOWN}


@pytest.mark.parametrize("codes", StatusCodes)
@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_has_a_status_by_name_or_by_its_base(kind: type[InferError], codes: StatusCodes) -> None:
    table = STATUS if codes is StatusCodes.KAIROS else TRITON
    assert any(base in table for base in kind.__mro__), f"{kind.__name__} would be INTERNAL by default"
    assert codes.code(kind("text")) not in NOT_MINE


def test_ours_keep_unavailable_for_servers_that_are_not_ready() -> None:
    unavailable = {kind for kind in ERRORS if StatusCodes.KAIROS.code(kind("")) is StatusCode.UNAVAILABLE}
    assert unavailable == {errors.ModelNotReady, errors.Draining, errors.NotAllowed}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ModelNotFound("x"), StatusCode.INVALID_ARGUMENT),
        (errors.VersionNotFound("x"), StatusCode.NOT_FOUND),
        (errors.Overloaded("x"), StatusCode.UNAVAILABLE),
        (errors.DeadlineExceeded("x"), StatusCode.UNAVAILABLE),
        (errors.TooLarge("x"), StatusCode.INVALID_ARGUMENT),
    ],
)
def test_where_triton_answers_otherwise(error: InferError, code: StatusCode) -> None:
    assert StatusCodes.TRITON.code(error) is code


def test_the_text_names_the_request() -> None:
    assert text_of(errors.InvalidRequest("wrong"), "7") == "[request id: 7] wrong"
    assert text_of(errors.InvalidRequest("wrong")) == "wrong"


def test_hints_for_those_who_try_again() -> None:
    assert dict(trailers_of(errors.Overloaded("", retry_after_s=0.25)))["retry-after-ms"] == "250"
    assert dict(trailers_of(errors.Overloaded("", retry_after_s=1e-9)))["grpc-retry-pushback-ms"] == "1"
    assert dict(trailers_of(errors.Overloaded("", retry_after_s=math.inf)))["retry-after-ms"] == "3600000"
    assert trailers_of(errors.Overloaded("")) == (("retryable", "true"),)
    assert trailers_of(errors.Draining("")) == (("retryable", "true"),)
    assert trailers_of(errors.EngineFailed("", retryable=True)) == (("retryable", "true"),)
    assert trailers_of(errors.EngineFailed("")) == ()
