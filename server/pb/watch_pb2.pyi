from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchStatusRequest(_message.Message):
    __slots__ = ("model", "details")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    model: str
    details: bool
    def __init__(self, model: _Optional[str] = ..., details: _Optional[bool] = ...) -> None: ...

class WatchStatusResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[WatchedModel]
    def __init__(self, models: _Optional[_Iterable[_Union[WatchedModel, _Mapping]]] = ...) -> None: ...

class WatchedModel(_message.Message):
    __slots__ = ("name", "version", "state", "note", "reference_rows", "window_rows", "looks", "alarm_p_value", "answered", "sampled", "dropped", "readings", "columns", "history")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_ROWS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_ROWS_FIELD_NUMBER: _ClassVar[int]
    LOOKS_FIELD_NUMBER: _ClassVar[int]
    ALARM_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    state: str
    note: str
    reference_rows: int
    window_rows: int
    looks: int
    alarm_p_value: float
    answered: int
    sampled: int
    dropped: int
    readings: _containers.RepeatedCompositeFieldContainer[WatchReading]
    columns: _containers.RepeatedCompositeFieldContainer[WatchedColumn]
    history: _containers.RepeatedCompositeFieldContainer[WatchLook]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., note: _Optional[str] = ..., reference_rows: _Optional[int] = ..., window_rows: _Optional[int] = ..., looks: _Optional[int] = ..., alarm_p_value: _Optional[float] = ..., answered: _Optional[int] = ..., sampled: _Optional[int] = ..., dropped: _Optional[int] = ..., readings: _Optional[_Iterable[_Union[WatchReading, _Mapping]]] = ..., columns: _Optional[_Iterable[_Union[WatchedColumn, _Mapping]]] = ..., history: _Optional[_Iterable[_Union[WatchLook, _Mapping]]] = ...) -> None: ...

class WatchReading(_message.Message):
    __slots__ = ("signal", "value", "alarm", "samples", "at", "p_value")
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    signal: str
    value: float
    alarm: bool
    samples: int
    at: float
    p_value: float
    def __init__(self, signal: _Optional[str] = ..., value: _Optional[float] = ..., alarm: _Optional[bool] = ..., samples: _Optional[int] = ..., at: _Optional[float] = ..., p_value: _Optional[float] = ...) -> None: ...

class WatchedColumn(_message.Message):
    __slots__ = ("name", "tensor", "answer", "psi", "distance", "wasserstein", "missing", "p_value", "categories", "edges", "reference", "window")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PSI_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    WASSERSTEIN_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    tensor: str
    answer: bool
    psi: float
    distance: float
    wasserstein: float
    missing: float
    p_value: float
    categories: _containers.RepeatedScalarFieldContainer[str]
    edges: _containers.RepeatedScalarFieldContainer[float]
    reference: _containers.RepeatedScalarFieldContainer[float]
    window: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., tensor: _Optional[str] = ..., answer: _Optional[bool] = ..., psi: _Optional[float] = ..., distance: _Optional[float] = ..., wasserstein: _Optional[float] = ..., missing: _Optional[float] = ..., p_value: _Optional[float] = ..., categories: _Optional[_Iterable[str]] = ..., edges: _Optional[_Iterable[float]] = ..., reference: _Optional[_Iterable[float]] = ..., window: _Optional[_Iterable[float]] = ...) -> None: ...

class WatchLook(_message.Message):
    __slots__ = ("at", "readings")
    AT_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    at: float
    readings: _containers.RepeatedCompositeFieldContainer[WatchReading]
    def __init__(self, at: _Optional[float] = ..., readings: _Optional[_Iterable[_Union[WatchReading, _Mapping]]] = ...) -> None: ...
