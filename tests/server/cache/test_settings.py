"""The typed options of config.pbtxt."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from engines.errors import LoadFailed
from server.cache.settings import cache_options_of
from server.cache.store import CacheOptions
from server.pb.model_config_pb2 import ModelResponseCache


def parsed(text: str) -> ModelResponseCache:
    return text_format.Parse(text, ModelResponseCache())


def test_off_unless_enabled_and_sensible_when_it_is() -> None:
    assert cache_options_of(parsed("")) is None
    assert cache_options_of(parsed("enable: false time_to_live_seconds: 5")) is None
    assert cache_options_of(parsed("enable: true")) == CacheOptions()


def test_every_option_arrives() -> None:
    text = (
        "enable: true time_to_live_seconds: 5 jitter_percent: -1 max_value_bytes: 77 levels: REDIS_ONLY "
        "execute_each: true lease_milliseconds: 250"
    )
    assert cache_options_of(parsed(text)) == CacheOptions(
        ttl_s=5, jitter=0.0, max_value_bytes=77, memory=False, redis=True, share_executions=False, lease_s=0.25
    )
    options = cache_options_of(parsed("enable: true levels: MEMORY_ONLY"))
    assert options is not None
    assert (options.memory, options.redis) == (True, False)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("jitter_percent: 101", "jitter_percent: 101 is more than 100"),
        ("time_to_live_seconds: 18446744073709551615", "is more than 100 years"),
    ],
)
def test_nonsense_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(LoadFailed, match=complaint):
        cache_options_of(parsed(f"enable: true {text}"))
