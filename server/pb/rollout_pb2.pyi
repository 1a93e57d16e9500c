from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RolloutStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WAITING: _ClassVar[RolloutStage]
    SHADOW: _ClassVar[RolloutStage]
    CANARY: _ClassVar[RolloutStage]
    PROMOTED: _ClassVar[RolloutStage]
    ROLLED_BACK: _ClassVar[RolloutStage]
    ABORTED: _ClassVar[RolloutStage]
WAITING: RolloutStage
SHADOW: RolloutStage
CANARY: RolloutStage
PROMOTED: RolloutStage
ROLLED_BACK: RolloutStage
ABORTED: RolloutStage

class RolloutStartRequest(_message.Message):
    __slots__ = ("model", "candidate", "stable", "steps", "step_seconds", "samples", "split_by", "salt", "no_retry", "no_signals", "limits", "comparing", "shadowing")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    STABLE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SPLIT_BY_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    NO_RETRY_FIELD_NUMBER: _ClassVar[int]
    NO_SIGNALS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    COMPARING_FIELD_NUMBER: _ClassVar[int]
    SHADOWING_FIELD_NUMBER: _ClassVar[int]
    model: str
    candidate: int
    stable: int
    steps: _containers.RepeatedScalarFieldContainer[float]
    step_seconds: float
    samples: int
    split_by: str
    salt: str
    no_retry: bool
    no_signals: bool
    limits: RolloutLimits
    comparing: RolloutComparing
    shadowing: RolloutShadowing
    def __init__(self, model: _Optional[str] = ..., candidate: _Optional[int] = ..., stable: _Optional[int] = ..., steps: _Optional[_Iterable[float]] = ..., step_seconds: _Optional[float] = ..., samples: _Optional[int] = ..., split_by: _Optional[str] = ..., salt: _Optional[str] = ..., no_retry: _Optional[bool] = ..., no_signals: _Optional[bool] = ..., limits: _Optional[_Union[RolloutLimits, _Mapping]] = ..., comparing: _Optional[_Union[RolloutComparing, _Mapping]] = ..., shadowing: _Optional[_Union[RolloutShadowing, _Mapping]] = ...) -> None: ...

class RolloutLimits(_message.Message):
    __slots__ = ("error_increase", "latency_ratio", "latency_slack_seconds", "agreement", "false_alarm")
    ERROR_INCREASE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_RATIO_FIELD_NUMBER: _ClassVar[int]
    LATENCY_SLACK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    FALSE_ALARM_FIELD_NUMBER: _ClassVar[int]
    error_increase: float
    latency_ratio: float
    latency_slack_seconds: float
    agreement: float
    false_alarm: float
    def __init__(self, error_increase: _Optional[float] = ..., latency_ratio: _Optional[float] = ..., latency_slack_seconds: _Optional[float] = ..., agreement: _Optional[float] = ..., false_alarm: _Optional[float] = ...) -> None: ...

class RolloutComparing(_message.Message):
    __slots__ = ("output", "absolute", "relative")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ABSOLUTE_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_FIELD_NUMBER: _ClassVar[int]
    output: str
    absolute: float
    relative: float
    def __init__(self, output: _Optional[str] = ..., absolute: _Optional[float] = ..., relative: _Optional[float] = ...) -> None: ...

class RolloutShadowing(_message.Message):
    __slots__ = ("sample", "in_flight", "bytes_in_flight", "deadline_seconds")
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    sample: float
    in_flight: int
    bytes_in_flight: int
    deadline_seconds: float
    def __init__(self, sample: _Optional[float] = ..., in_flight: _Optional[int] = ..., bytes_in_flight: _Optional[int] = ..., deadline_seconds: _Optional[float] = ...) -> None: ...

class RolloutStatusRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class RolloutStatusResponse(_message.Message):
    __slots__ = ("rollouts",)
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    rollouts: _containers.RepeatedCompositeFieldContainer[RolloutState]
    def __init__(self, rollouts: _Optional[_Iterable[_Union[RolloutState, _Mapping]]] = ...) -> None: ...

class RolloutPromoteRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class RolloutAbortRequest(_message.Message):
    __slots__ = ("model", "forget")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    model: str
    forget: bool
    def __init__(self, model: _Optional[str] = ..., forget: _Optional[bool] = ...) -> None: ...

class RolloutState(_message.Message):
    __slots__ = ("model", "stable", "candidate", "stage", "share", "step", "steps", "step_elapsed_seconds", "step_seconds", "samples", "reason", "stable_arm", "candidate_arm", "compared", "agreement", "max_error", "limits", "copies_compared", "copies_failed", "copies_refused", "copies_dropped", "retries", "history", "split_by")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STABLE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_ELAPSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STABLE_ARM_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ARM_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    MAX_ERROR_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    COPIES_COMPARED_FIELD_NUMBER: _ClassVar[int]
    COPIES_FAILED_FIELD_NUMBER: _ClassVar[int]
    COPIES_REFUSED_FIELD_NUMBER: _ClassVar[int]
    COPIES_DROPPED_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SPLIT_BY_FIELD_NUMBER: _ClassVar[int]
    model: str
    stable: int
    candidate: int
    stage: RolloutStage
    share: float
    step: int
    steps: _containers.RepeatedScalarFieldContainer[float]
    step_elapsed_seconds: float
    step_seconds: float
    samples: int
    reason: str
    stable_arm: RolloutArm
    candidate_arm: RolloutArm
    compared: int
    agreement: float
    max_error: float
    limits: RolloutLimits
    copies_compared: int
    copies_failed: int
    copies_refused: int
    copies_dropped: int
    retries: int
    history: _containers.RepeatedCompositeFieldContainer[RolloutEntry]
    split_by: str
    def __init__(self, model: _Optional[str] = ..., stable: _Optional[int] = ..., candidate: _Optional[int] = ..., stage: _Optional[_Union[RolloutStage, str]] = ..., share: _Optional[float] = ..., step: _Optional[int] = ..., steps: _Optional[_Iterable[float]] = ..., step_elapsed_seconds: _Optional[float] = ..., step_seconds: _Optional[float] = ..., samples: _Optional[int] = ..., reason: _Optional[str] = ..., stable_arm: _Optional[_Union[RolloutArm, _Mapping]] = ..., candidate_arm: _Optional[_Union[RolloutArm, _Mapping]] = ..., compared: _Optional[int] = ..., agreement: _Optional[float] = ..., max_error: _Optional[float] = ..., limits: _Optional[_Union[RolloutLimits, _Mapping]] = ..., copies_compared: _Optional[int] = ..., copies_failed: _Optional[int] = ..., copies_refused: _Optional[int] = ..., copies_dropped: _Optional[int] = ..., retries: _Optional[int] = ..., history: _Optional[_Iterable[_Union[RolloutEntry, _Mapping]]] = ..., split_by: _Optional[str] = ...) -> None: ...

class RolloutArm(_message.Message):
    __slots__ = ("requests", "failures", "p50_seconds", "p99_seconds")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    P50_SECONDS_FIELD_NUMBER: _ClassVar[int]
    P99_SECONDS_FIELD_NUMBER: _ClassVar[int]
    requests: int
    failures: int
    p50_seconds: float
    p99_seconds: float
    def __init__(self, requests: _Optional[int] = ..., failures: _Optional[int] = ..., p50_seconds: _Optional[float] = ..., p99_seconds: _Optional[float] = ...) -> None: ...

class RolloutEntry(_message.Message):
    __slots__ = ("at", "text")
    AT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    at: float
    text: str
    def __init__(self, at: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...
