from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(_message.Message):
    __slots__ = ("model", "id", "row", "label", "metric", "value", "time")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    model: str
    id: str
    row: int
    label: str
    metric: str
    value: float
    time: float
    def __init__(self, model: _Optional[str] = ..., id: _Optional[str] = ..., row: _Optional[int] = ..., label: _Optional[str] = ..., metric: _Optional[str] = ..., value: _Optional[float] = ..., time: _Optional[float] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("accepted", "duplicate", "unknown", "late")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    duplicate: int
    unknown: int
    late: int
    def __init__(self, accepted: _Optional[int] = ..., duplicate: _Optional[int] = ..., unknown: _Optional[int] = ..., late: _Optional[int] = ...) -> None: ...

class FeedbackStatusRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class FeedbackStatusResponse(_message.Message):
    __slots__ = ("predictions", "outcomes", "pending", "size_bytes", "models", "without_id", "repeated_ids", "dropped")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_ID_FIELD_NUMBER: _ClassVar[int]
    REPEATED_IDS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    predictions: int
    outcomes: int
    pending: int
    size_bytes: int
    models: _containers.RepeatedCompositeFieldContainer[ModelOutcomes]
    without_id: int
    repeated_ids: int
    dropped: int
    def __init__(self, predictions: _Optional[int] = ..., outcomes: _Optional[int] = ..., pending: _Optional[int] = ..., size_bytes: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelOutcomes, _Mapping]]] = ..., without_id: _Optional[int] = ..., repeated_ids: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...

class ModelOutcomes(_message.Message):
    __slots__ = ("model", "version", "labelled", "accuracy", "calibration_error", "metrics")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ERROR_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    labelled: int
    accuracy: float
    calibration_error: float
    metrics: _containers.RepeatedCompositeFieldContainer[MetricOutcomes]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., labelled: _Optional[int] = ..., accuracy: _Optional[float] = ..., calibration_error: _Optional[float] = ..., metrics: _Optional[_Iterable[_Union[MetricOutcomes, _Mapping]]] = ...) -> None: ...

class MetricOutcomes(_message.Message):
    __slots__ = ("name", "samples", "mean", "confidence", "drift")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    name: str
    samples: int
    mean: float
    confidence: Correlation
    drift: Correlation
    def __init__(self, name: _Optional[str] = ..., samples: _Optional[int] = ..., mean: _Optional[float] = ..., confidence: _Optional[_Union[Correlation, _Mapping]] = ..., drift: _Optional[_Union[Correlation, _Mapping]] = ...) -> None: ...

class Correlation(_message.Message):
    __slots__ = ("value", "low", "high", "samples")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    samples: int
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., samples: _Optional[int] = ...) -> None: ...
