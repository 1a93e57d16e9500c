"""Looks at the server twice a second, as a dashboard would, and says what a rollout does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import grpc

from examples.mlops.story import Sight, Story
from server.pb import rollout_pb2, watch_pb2
from server.pb.rollout_pb2_grpc import RolloutStub
from server.pb.watch_pb2_grpc import WatchStub

EVERY_S = 0.5
Stage = rollout_pb2.RolloutStage


class Observer:
    """One thread. `sight` is the latest."""

    def __init__(self, url: str, story: Story, say: Callable[[str], None]) -> None:
        self.stage = Stage.Name(0)
        """Of the rollout, by its name in the protocol."""
        self._story, self._say = story, say
        self._told = 0.0
        self._channel = grpc.insecure_channel(url, [("grpc.max_reconnect_backoff_ms", 200)])
        self._watch = WatchStub(self._channel)  # type: ignore[no-untyped-call]
        self._rollouts = RolloutStub(self._channel)  # type: ignore[no-untyped-call]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer")
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()
        self._channel.close()

    @property
    def sight(self) -> Sight:
        """The latest; one of nothing before the first."""
        return self._story.sights[-1] if self._story.sights else Sight(0.0, {}, {}, 0.0)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            with suppress(grpc.RpcError):  # it is away for a moment
                self._look()

    def _look(self) -> None:
        watched = self._watch.Status(watch_pb2.WatchStatusRequest(), timeout=10).models
        rollouts = self._rollouts.Status(rollout_pb2.RolloutStatusRequest(), timeout=10).rollouts
        share = 0.0
        for rollout in rollouts:
            share, self.stage = rollout.share, Stage.Name(rollout.stage)
            for entry in rollout.history:
                if entry.at > self._told:
                    self._told = entry.at
                    self._say(entry.text)
        drift = {
            model.version: reading.value for model in watched for reading in model.readings if reading.signal == "drift"
        }
        alarms = {
            model.version: frozenset(reading.signal for reading in model.readings if reading.alarm)
            for model in watched
            if model.state == "watching"
        }
        self._story.sights.append(Sight(time.time(), drift, alarms, share))
