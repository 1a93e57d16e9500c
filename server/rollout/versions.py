"""A model's versions as a rollout sees them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from engines.inference import Inference
from engines.spec import ModelSpec


class Engines(Inference, Protocol):
    """What runs a version: the bottom of its stack, which no meter, cache or tap looks at."""

    @property
    def idle(self) -> bool:
        """Whether a request would wait for nobody."""
        ...


class Version(Protocol):
    """One version that is up."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def inference(self) -> Inference:
        """The whole stack: what callers are answered by."""
        ...

    @property
    def engines(self) -> Engines: ...


Lender: TypeAlias = AbstractContextManager[Version]
"""Keeps the version up for the length of a block; raises ModelNotReady when it is gone. Blocks may overlap."""


class Handle(AbstractContextManager[Version], Protocol):
    """A lender that shows what it lends."""

    @property
    def service(self) -> Version: ...
