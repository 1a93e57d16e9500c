from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ArrivalsRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ArrivalsResponse(_message.Message):
    __slots__ = ("arrivals", "dropped")
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    arrivals: _containers.RepeatedCompositeFieldContainer[RecordedArrival]
    dropped: int
    def __init__(self, arrivals: _Optional[_Iterable[_Union[RecordedArrival, _Mapping]]] = ..., dropped: _Optional[int] = ...) -> None: ...

class RecordedArrival(_message.Message):
    __slots__ = ("seconds", "rows", "deadline_seconds", "priority", "tenant")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    rows: int
    deadline_seconds: float
    priority: int
    tenant: str
    def __init__(self, seconds: _Optional[float] = ..., rows: _Optional[int] = ..., deadline_seconds: _Optional[float] = ..., priority: _Optional[int] = ..., tenant: _Optional[str] = ...) -> None: ...
