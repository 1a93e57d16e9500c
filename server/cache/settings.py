"""What a model's configuration says about its answers."""

from __future__ import annotations

from typing import Final

from engines.errors import LoadFailed
from server.cache.store import CacheOptions
from server.pb.model_config_pb2 import ModelResponseCache

_DEFAULTS: Final = CacheOptions()
_MAX_TTL_S: Final = 100 * 365 * 24 * 3600
"""A hundred years; Redis refuses times to live that overflow its clock."""


def cache_options_of(config: ModelResponseCache) -> CacheOptions | None:
    """The options, or None when the model's answers are not to be remembered. Raises LoadFailed."""
    if not config.enable:
        return None
    jitter_percent = max(0, config.jitter_percent) if config.jitter_percent else 100 * _DEFAULTS.jitter
    if jitter_percent > 100:
        raise LoadFailed(f"response_cache.jitter_percent: {jitter_percent} is more than 100")
    if config.time_to_live_seconds > _MAX_TTL_S:
        raise LoadFailed(f"response_cache.time_to_live_seconds: {config.time_to_live_seconds} is more than 100 years")
    return CacheOptions(
        ttl_s=config.time_to_live_seconds or _DEFAULTS.ttl_s,
        jitter=jitter_percent / 100,
        max_value_bytes=config.max_value_bytes or _DEFAULTS.max_value_bytes,
        memory=config.levels != ModelResponseCache.REDIS_ONLY,
        redis=config.levels != ModelResponseCache.MEMORY_ONLY,
        share_executions=not config.execute_each,
        always=config.always,
        lease_s=config.lease_milliseconds / 1000,
    )
