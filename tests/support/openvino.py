"""An ONNX Runtime that says it has OpenVINO, and runs what it is asked to run there on its own kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import pytest

from engines.tensor import Array

PROVIDER: Final = "OpenVINOExecutionProvider"
_CPU: Final = "CPUExecutionProvider"


class PretendOpenVino:
    """Stands between the backend and ONNX Runtime."""

    def __init__(self, *, spoils: bool) -> None:
        self.spoils = spoils
        """Whether it answers nothing but zeros."""
        self.opened: list[Mapping[str, str]] = []
        """The provider's options of each session."""

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch, *, spoils: bool = False) -> PretendOpenVino:
        """Pretend until the test ends."""
        pretended, real = cls(spoils=spoils), ort.InferenceSession

        def session(model: str, settings: ort.SessionOptions, providers: Sequence[Any], **options: Any) -> Any:
            opened = real(model, settings, providers=[_CPU])
            if providers == [_CPU]:
                return opened
            (name, given), rest = providers
            assert (name, rest, options) == (PROVIDER, _CPU, {"enable_fallback": 0})
            assert settings.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            pretended.opened.append(given)
            return _Spoilt(opened) if pretended.spoils else opened

        monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDER, _CPU])
        monkeypatch.setattr(ort, "InferenceSession", session)
        return pretended


class _Spoilt:
    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def run(self, names: list[str], feeds: Mapping[str, Array]) -> list[Array]:
        return [np.zeros_like(output) for output in self._session.run(names, feeds)]
