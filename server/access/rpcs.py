"""Every RPC there is, the group that opens it, and how its requests name the model they are about.

Rule: an RPC that is not in this table is closed wherever access is guarded. A test compares it with what is served.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final


class Group(enum.Enum):
    """What a policy speaks of."""

    HEALTH = "health"
    REFLECTION = "reflection"
    INFER = "infer"
    READ = "read"
    CONTROL = "control"
    SHARED_MEMORY = "shared-memory"
    FEEDBACK = "feedback"
    WATCH = "watch"

    # Members are singletons: identity is equality, and the default hash of the name costs a Python call.
    __hash__ = object.__hash__


REMOTE: Final = frozenset(Group) - {Group.CONTROL, Group.SHARED_MEMORY}
"""What is open, without a policy, to callers of other hosts. The rest changes the server, or maps its host's memory."""

EVERY_MODEL: Final = "*"


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method."""

    group: Group
    fields: tuple[str, ...] = ()
    """Fields of a request that may name its model; the first that is not empty does."""
    about_models: bool = False
    """Whether a request that names no model is about all of them."""

    def model(self, request: Any) -> str:  # noqa: ANN401  (whatever message the method takes)
        """The model of a request, EVERY_MODEL, or nothing where it is about none."""
        for field in self.fields:
            name: str = getattr(request, field)
            if name:
                return name
        return EVERY_MODEL if self.about_models else ""


def _service(name: str, **methods: Rpc) -> Iterator[tuple[str, Rpc]]:
    for method, rpc in methods.items():
        yield f"/{name}/{method}", rpc


_HEALTH: Final = Rpc(Group.HEALTH)
_MEMORY: Final = Rpc(Group.SHARED_MEMORY)

RPCS: Final[Mapping[str, Rpc]] = dict(
    (
        *_service(
            "inference.GRPCInferenceService",
            ServerLive=_HEALTH,
            ServerReady=_HEALTH,
            ModelReady=_HEALTH,
            ModelInfer=Rpc(Group.INFER, ("model_name",), about_models=True),
            ModelStreamInfer=Rpc(Group.INFER, ("model_name",), about_models=True),
            ServerMetadata=Rpc(Group.READ),
            ModelMetadata=Rpc(Group.READ, ("name",), about_models=True),
            ModelConfig=Rpc(Group.READ, ("name",), about_models=True),
            ModelStatistics=Rpc(Group.READ, ("name",), about_models=True),
            RepositoryIndex=Rpc(Group.READ, about_models=True),
            RepositoryModelLoad=Rpc(Group.CONTROL, ("model_name", "repository_name"), about_models=True),
            RepositoryModelUnload=Rpc(Group.CONTROL, ("model_name", "repository_name"), about_models=True),
            TraceSetting=Rpc(Group.CONTROL, ("model_name",), about_models=True),
            LogSettings=Rpc(Group.CONTROL, about_models=True),
            SystemSharedMemoryStatus=_MEMORY,
            SystemSharedMemoryRegister=_MEMORY,
            SystemSharedMemoryUnregister=_MEMORY,
            CudaSharedMemoryStatus=_MEMORY,
            CudaSharedMemoryRegister=_MEMORY,
            CudaSharedMemoryUnregister=_MEMORY,
        ),
        *_service(
            "kairos.v1.Cache",
            Statistics=Rpc(Group.READ, ("model",), about_models=True),
            Flush=Rpc(Group.CONTROL, ("model",), about_models=True),
        ),
        *_service(
            "kairos.v1.Rollout",
            Start=Rpc(Group.CONTROL, ("model",), about_models=True),
            Status=Rpc(Group.READ, ("model",), about_models=True),
            Promote=Rpc(Group.CONTROL, ("model",), about_models=True),
            Abort=Rpc(Group.CONTROL, ("model",), about_models=True),
        ),
        *_service("kairos.v1.Watch", Status=Rpc(Group.WATCH, ("model",), about_models=True)),
        *_service(
            "kairos.v1.Feedback",
            Report=Rpc(Group.FEEDBACK, about_models=True),
            ReportStream=Rpc(Group.FEEDBACK, about_models=True),
            Status=Rpc(Group.FEEDBACK, ("model",), about_models=True),
        ),
        # It tells of the requests of all tenants.
        *_service("kairos.v1.Traffic", Arrivals=Rpc(Group.CONTROL, ("model",), about_models=True)),
        *_service("grpc.health.v1.Health", Check=_HEALTH, Watch=_HEALTH),
        *_service("grpc.reflection.v1alpha.ServerReflection", ServerReflectionInfo=Rpc(Group.REFLECTION)),
    )
)
