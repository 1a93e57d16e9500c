"""What a server does after its answers: which sinks it opens, and what a look leads to."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engines.errors import LoadFailed
from engines.spec import ModelSpec
from server.pb.model_config_pb2 import ModelCapture, ModelConfig, ModelWatch
from server.telemetry.feedback import feedback_metrics
from server.watch.capture import Capture
from server.watch.feedback import Feedback
from server.watch.outcomes import LABEL, Outcome
from server.watch.predictions import PredictionSink
from server.watch.readings import Reading
from server.watch.sampled import SampledSink
from server.watch.trigger_file import LogOptions, RetryOptions, TriggerOptions
from server.watch.triggers import Rule
from tests.server.watch.support import SPEC, images, observation, scores

TRIGGERS = TriggerOptions(
    rules=(
        Rule(name="moved", signal="drift", above=0.5, actions=("log",)),
        Rule(name="wrong", signal="accuracy", below=0.5, actions=("log",)),
    ),
    actions={"log": LogOptions(retry=RetryOptions(attempts=1, timeout_s=1.0))},
)


@dataclass
class Definition:
    """All of a definition that is looked at."""

    config: ModelConfig
    spec: ModelSpec = SPEC


@dataclass
class Monitor:
    found: dict[str, Reading] = field(default_factory=dict)

    def readings(self) -> Mapping[str, Reading]:
        return self.found

    def drift(self, at: float, value: float) -> None:
        self.found["drift"] = Reading("drift", value, False, 100, at)


def watched(**capture: Any) -> Any:
    return Definition(ModelConfig(watch=ModelWatch(enable=True), capture=ModelCapture(**capture)))


def test_only_models_that_ask_for_it_get_sinks(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path, None, list)
    plain: Any = Definition(ModelConfig())
    assert feedback.prediction_sink(plain) is None
    assert feedback.capture_sink(plain) is None
    assert not list(tmp_path.iterdir())
    assert feedback.statistics().outcomes is None
    assert list(feedback_metrics(feedback.statistics())) == []

    assert isinstance(feedback.prediction_sink(watched()), PredictionSink)
    assert feedback.capture_sink(watched()) is None
    assert isinstance(feedback.capture_sink(watched(enable=True)), Capture)
    assert isinstance(feedback.capture_sink(watched(enable=True, share=0.5)), SampledSink)
    asyncio.run(feedback.close())


def test_without_a_state_directory(tmp_path: Path) -> None:
    feedback = Feedback(None, None, list)
    assert feedback.prediction_sink(watched()) is None
    assert feedback.store is None
    with pytest.raises(LoadFailed, match="capture needs a state directory"):
        feedback.capture_sink(watched(enable=True))
    with pytest.raises(LoadFailed, match="triggers need a state directory"):
        Feedback(None, TRIGGERS, list)


def test_a_store_that_cannot_be_opened_costs_the_model_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "feedback").write_text("in the way")
    with caplog.at_level(logging.ERROR):
        assert Feedback(tmp_path, None, list).prediction_sink(watched()) is None
    assert "outcomes of m cannot be recorded" in caplog.text


def test_a_look_from_predictions_to_events_and_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor()

    async def main() -> None:
        feedback = Feedback(tmp_path, TRIGGERS, lambda: [("m", 2, monitor)])
        feedback.open()
        predictions = feedback.prediction_sink(watched())
        capture = feedback.capture_sink(watched(enable=True, rotate_seconds=60))
        assert predictions is not None
        assert capture is not None
        assert feedback.store is not None
        for sink in (predictions, capture):
            sink.observe([observation(images(2), scores(2, best=1), id_="q")])
        wrong = [Outcome("m", "q", row, LABEL, "3", 0.0, 1e9) for row in range(2)]
        await asyncio.wrap_future(feedback.store.report(wrong, 1e9))
        monitor.drift(1e9, 0.2)
        await feedback.look(1e9 + 1)
        monitor.drift(1e9 + 70, 0.9)
        await feedback.look(1e9 + 71)
        await feedback.look(1e9 + 72)
        found = feedback.statistics()
        text = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for each in feedback_metrics(found)
            for sample in each.samples
        }
        await feedback.close()
        assert found.figures[0].accuracy == 0.0
        model = (("model", "m"), ("version", "2"))
        assert text["kairos_feedback_accuracy", *model] == 0.0
        assert text["kairos_feedback_labelled", *model] == 2.0
        assert text["kairos_feedback_reports_total", ("result", "accepted")] == 2.0
        assert text["kairos_feedback_predictions_total", ("result", "recorded")] == 2.0
        assert text["kairos_capture_rows_total", model[0], ("result", "written"), model[1]] == 2.0
        assert text["kairos_capture_files_total", *model] == 1.0  # the look closed it, without traffic
        assert text["kairos_capture_bytes", model[0]] > 0
        for rule in ("moved", "wrong"):
            assert text["kairos_trigger_events_total", model[0], ("rule", rule), model[1]] == 1.0
            assert text["kairos_trigger_raised", model[0], ("rule", rule), model[1]] == 1.0
        assert text["kairos_trigger_failures_total",] == 0.0

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert caplog.text.count("trigger moved: drift of m:2 is 0.9") == 1
    assert caplog.text.count("trigger wrong: accuracy of m:2 is 0") == 1


def test_figures_are_made_anew_for_new_outcomes_and_old_ones_leave(tmp_path: Path) -> None:
    async def main() -> None:
        feedback = Feedback(tmp_path, None, lambda: [("m", 2, None)])
        sink = feedback.prediction_sink(watched())
        assert sink is not None
        assert feedback.store is not None
        sink.observe([observation(images(1), scores(1, best=1), id_="q")])
        await asyncio.wrap_future(feedback.store.report([Outcome("m", "q", 0, LABEL, "b", 0.0, 1e9)], 1e9))
        await feedback.look(1e9)
        assert feedback.statistics().figures[0].accuracy == 1.0
        await asyncio.wrap_future(feedback.store.report([Outcome("m", "q", 0, "cost", "", 2.0, 1e9)], 1e9))
        await feedback.look(1e9 + 1)
        metric = feedback.statistics().figures[0].metrics["cost"]
        assert metric.mean == 2.0
        assert math.isnan(metric.confidence.value)
        await feedback.look(1e9 + 86402)
        assert feedback.statistics().figures == []
        await feedback.close()

    asyncio.run(main())


def test_what_may_speak_against_a_version(tmp_path: Path) -> None:
    monitor = Monitor()
    monitor.drift(1e9, 0.9)
    quiet = Rule(name="quiet", signal="volume", below=1.0)
    triggers = TriggerOptions(rules=(*TRIGGERS.rules, quiet), actions=TRIGGERS.actions)

    async def main() -> None:
        feedback = Feedback(tmp_path, triggers, lambda: [("m", 1, None), ("m", 2, monitor)])
        feedback.open()
        assert feedback.readings("m", 2) == monitor.found
        monitor.found["volume"] = Reading("volume", 0.0, alarm=False, samples=1, at=1e9)
        await feedback.look(1e9)
        found = feedback.readings("m", 2)
        assert found.keys() == {"drift", "volume", "rule.moved"}
        assert [name for name, reading in found.items() if reading.alarm] == ["rule.moved"]
        assert feedback.readings("m", 1) == {}
        assert feedback.readings("other", 2) == {}
        await feedback.close()

    asyncio.run(main())
