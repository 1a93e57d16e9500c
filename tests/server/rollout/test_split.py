"""Who gets the candidate."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.rollout.context import SPLIT
from server.rollout.split import Splitter, metadata_key
from tests.server.rollout.support import request

KEYS = [f"caller-{number}" for number in range(20_000)]


@given(st.text(), st.text())
@settings(deadline=None)
def test_a_place_is_stable_and_within_bounds(key: str, salt: str) -> None:
    place = Splitter("id", salt).place_of(key)
    assert 0.0 <= place < 1.0
    assert Splitter("id", salt).place_of(key) == place


def test_known_places_never_change() -> None:
    """Replicas of different releases must agree, and a restart must not move anybody."""
    splitter = Splitter("id", "digits:2")
    assert [round(splitter.place_of(key), 6) for key in ("a", "b", "ü")] == [0.861596, 0.552482, 0.824304]


def test_a_greater_share_only_adds_callers() -> None:
    splitter = Splitter("id", "digits:2")
    sides = [{key for key in KEYS if splitter.place_of(key) < share} for share in (0.0, 0.01, 0.05, 0.25, 0.5, 1.0)]
    assert sides[0] == set()
    assert sides[-1] == set(KEYS)
    assert all(before < after for before, after in itertools.pairwise(sides))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5])
@pytest.mark.parametrize("salt", ["one", "two", "three"])
def test_shares_are_within_binomial_bounds(share: float, salt: str) -> None:
    splitter = Splitter("id", salt)
    found = sum(splitter.place_of(key) < share for key in KEYS)
    spread = math.sqrt(len(KEYS) * share * (1 - share))
    assert abs(found - len(KEYS) * share) < 4.5 * spread


def test_another_salt_begins_with_others() -> None:
    one, two = ({key for key in KEYS if Splitter("id", salt).place_of(key) < 0.05} for salt in ("a", "b"))
    assert len(one & two) < 0.2 * len(one)


def test_what_makes_a_caller() -> None:
    asked = request("request", tenant="acme", parameters={"user": 7})
    place = Splitter("id", "s").place_of
    SPLIT.set("from metadata")
    for by, key in (
        ("auto", "acme"),
        ("tenant", "acme"),
        ("id", "request"),
        ("parameter:user", "7"),
        ("metadata:X-User", "from metadata"),
    ):
        assert Splitter(by, "s").place(asked) == place(key), by
    assert Splitter("auto", "s").place(request("request")) == place("request")
    assert (metadata_key("metadata:X-User"), metadata_key("tenant")) == ("x-user", "")
    with pytest.raises(ValueError, match="nothing to split by"):
        Splitter("metadata:", "s")


def test_requests_without_a_key_are_spread_one_by_one() -> None:
    splitter = Splitter("id", "s")
    places = [splitter.place(request("")) for _ in range(2000)]
    assert len(set(places)) == 2000
    assert 0.2 < sum(place < 0.25 for place in places) / 2000 < 0.3
