"""The `watch` block of config.pbtxt."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from engines.errors import LoadFailed
from server.pb.model_config_pb2 import ModelWatch
from server.watch.kinds import Kind
from server.watch.settings import KINDS, Hints, WatchOptions, watch_options_of
from tests.support.watching import SPEC


def parsed(text: str) -> ModelWatch:
    return text_format.Parse(text, ModelWatch())


def test_off_unless_enabled_and_sensible_when_it_is() -> None:
    assert watch_options_of(parsed(""), SPEC) is None
    assert watch_options_of(parsed("sample_rate: 0.5"), SPEC) is None
    assert watch_options_of(parsed("enable: true"), SPEC) == WatchOptions()


def test_every_option_arrives() -> None:
    text = (
        "enable: true sample_rate: 0.5 window_rows: 300 window_seconds: 60 level: 0.05 looks: 2 least_psi: 0.1 "
        'learn_rows: 900 tensor { name: "x" kind: KIND_EMBEDDING } output: "logits" look_milliseconds: 250'
    )
    found = watch_options_of(parsed(text), SPEC)
    assert found == WatchOptions(
        rate=0.5, window_rows=300, window_s=60, level=0.05, looks=2, least_psi=0.1, learn_rows=900, look_s=0.25,
        hints=Hints(kinds={"x": Kind.EMBEDDING}, answer="logits"),
    )  # fmt: skip
    assert (found.stride, found.alarm_p_value) == (150, 0.025)


def test_every_kind_can_be_asked_for() -> None:
    assert {*KINDS, ModelWatch.KIND_AUTO} == set(ModelWatch.Kind.values())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sample_rate: 1.5", "watch.sample_rate: 1.5 is not between 0 and 1"),
        ("sample_rate: nan", "watch.sample_rate"),
        ("level: -1", "watch.level"),
        ("window_rows: 10", "watch.window_rows: 10 is not between 30"),
        ("learn_rows: 5", "watch.learn_rows: 5 is not between 30"),
        ('tensor { name: "y" }', "watch.tensor: the model has no input or output 'y'"),
        ('tensor { name: "x" kind: KIND_LOGITS }', "only outputs can be logits"),
        ('output: "x"', "watch.output: the model has no output 'x'"),
    ],
)
def test_nonsense_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(LoadFailed, match=complaint):
        watch_options_of(parsed(f"enable: true {text}"), SPEC)
