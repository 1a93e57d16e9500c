"""What processors say about themselves, and what sessions make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.backends.fake import fake_spec
from engines.backends.onnxruntime import SessionSource
from engines.backends.options import EngineOptions
from engines.backends.processor import PRECISION_KEY, Processor, read_processor


@pytest.mark.parametrize(
    ("flags", "machine", "exact"),
    [
        ("fpu avx2 fma", "x86_64", False),
        ("fpu avx2 avx512f avx512bw", "x86_64", False),
        ("fpu avx2 avx_vnni", "x86_64", True),
        ("fpu avx512f avx512_vnni", "x86_64", True),
        ("fpu avx2 amx_int8", "x86_64", True),
        ("", "aarch64", True),
    ],
)
def test_exact_products_need_vnni_or_amx_on_x86(tmp_path: Path, flags: str, machine: str, exact: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Some Processor\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    assert read_processor(cpuinfo, machine) == Processor("Some Processor", exact)


def test_an_x86_that_says_nothing_is_not_trusted(tmp_path: Path) -> None:
    assert not read_processor(tmp_path / "none", "x86_64").exact_int8


def entry(processor: Processor, configured: dict[str, str] | None = None) -> str:
    options = EngineOptions(session_config=configured or {})
    source = SessionSource(Path("model.onnx"), fake_spec(), options, processor=processor)
    settings = source._settings(1)
    try:
        return str(settings.get_session_config_entry(PRECISION_KEY))
    except RuntimeError:
        return ""


@pytest.mark.parametrize(("flags", "able"), [("avx512_bf16", True), ("fpu amx_bf16", True), ("avx512_vnni", False)])
def test_bf16_shows_in_the_flags(tmp_path: Path, flags: str, able: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : {flags}\n")
    assert read_processor(cpuinfo, "x86_64").bf16 is able


def test_sessions_ask_for_exact_products_where_they_are_not_given() -> None:
    assert entry(Processor("old", exact_int8=False)) == "1"
    assert entry(Processor("new", exact_int8=True)) == ""


def test_the_configuration_has_the_last_word() -> None:
    assert entry(Processor("old", exact_int8=False), {PRECISION_KEY: "0"}) == "0"
