from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BreakerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOSED: _ClassVar[BreakerState]
    OPEN: _ClassVar[BreakerState]
    PROBING: _ClassVar[BreakerState]
CLOSED: BreakerState
OPEN: BreakerState
PROBING: BreakerState

class CacheStatisticsRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class CacheStatisticsResponse(_message.Message):
    __slots__ = ("models", "memory", "redis")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    REDIS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[CachedModel]
    memory: MemoryLevel
    redis: RedisLevel
    def __init__(self, models: _Optional[_Iterable[_Union[CachedModel, _Mapping]]] = ..., memory: _Optional[_Union[MemoryLevel, _Mapping]] = ..., redis: _Optional[_Union[RedisLevel, _Mapping]] = ...) -> None: ...

class CachedModel(_message.Message):
    __slots__ = ("name", "version", "memory_hits", "redis_hits", "misses", "shared", "bypassed", "failed", "too_large", "aside")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_HITS_FIELD_NUMBER: _ClassVar[int]
    REDIS_HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    BYPASSED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    TOO_LARGE_FIELD_NUMBER: _ClassVar[int]
    ASIDE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    memory_hits: int
    redis_hits: int
    misses: int
    shared: int
    bypassed: int
    failed: int
    too_large: int
    aside: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., memory_hits: _Optional[int] = ..., redis_hits: _Optional[int] = ..., misses: _Optional[int] = ..., shared: _Optional[int] = ..., bypassed: _Optional[int] = ..., failed: _Optional[int] = ..., too_large: _Optional[int] = ..., aside: _Optional[int] = ...) -> None: ...

class MemoryLevel(_message.Message):
    __slots__ = ("entries", "size_bytes", "limit_bytes", "evictions", "expirations")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPIRATIONS_FIELD_NUMBER: _ClassVar[int]
    entries: int
    size_bytes: int
    limit_bytes: int
    evictions: int
    expirations: int
    def __init__(self, entries: _Optional[int] = ..., size_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., evictions: _Optional[int] = ..., expirations: _Optional[int] = ...) -> None: ...

class RedisLevel(_message.Message):
    __slots__ = ("found", "absent", "late", "failed", "skipped", "corrupted", "expired", "leases_awaited", "lookups", "lookup_p50_seconds", "lookup_p99_seconds", "written", "write_failed", "write_dropped", "write_queued_bytes", "writes")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    CORRUPTED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    LEASES_AWAITED_FIELD_NUMBER: _ClassVar[int]
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_P50_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_P99_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    WRITE_FAILED_FIELD_NUMBER: _ClassVar[int]
    WRITE_DROPPED_FIELD_NUMBER: _ClassVar[int]
    WRITE_QUEUED_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITES_FIELD_NUMBER: _ClassVar[int]
    found: int
    absent: int
    late: int
    failed: int
    skipped: int
    corrupted: int
    expired: int
    leases_awaited: int
    lookups: BreakerState
    lookup_p50_seconds: float
    lookup_p99_seconds: float
    written: int
    write_failed: int
    write_dropped: int
    write_queued_bytes: int
    writes: BreakerState
    def __init__(self, found: _Optional[int] = ..., absent: _Optional[int] = ..., late: _Optional[int] = ..., failed: _Optional[int] = ..., skipped: _Optional[int] = ..., corrupted: _Optional[int] = ..., expired: _Optional[int] = ..., leases_awaited: _Optional[int] = ..., lookups: _Optional[_Union[BreakerState, str]] = ..., lookup_p50_seconds: _Optional[float] = ..., lookup_p99_seconds: _Optional[float] = ..., written: _Optional[int] = ..., write_failed: _Optional[int] = ..., write_dropped: _Optional[int] = ..., write_queued_bytes: _Optional[int] = ..., writes: _Optional[_Union[BreakerState, str]] = ...) -> None: ...

class CacheFlushRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class CacheFlushResponse(_message.Message):
    __slots__ = ("memory", "redis", "redis_error")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    REDIS_FIELD_NUMBER: _ClassVar[int]
    REDIS_ERROR_FIELD_NUMBER: _ClassVar[int]
    memory: int
    redis: int
    redis_error: str
    def __init__(self, memory: _Optional[int] = ..., redis: _Optional[int] = ..., redis_error: _Optional[str] = ...) -> None: ...
