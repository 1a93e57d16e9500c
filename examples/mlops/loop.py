"""A model from its first version to its next one, because the world changed: the whole loop in one command.

    python examples/mlops/loop.py                       # two minutes; the first time MLflow is installed, a minute more
    python examples/mlops/loop.py --source folder       # without MLflow
    python examples/mlops/loop.py --brief --kill        # in a minute, and the server is killed in each step

1. Train on clean digits, make a baseline, publish to a registry (MLflow's own server), serve its `champion`.
2. Callers ask, and report later what was true. All is well.
3. The world changes: digits come rotated, noisy, and inverted. The watch raises its alarm.
4. A trigger tells the training service by a signed webhook. It gathers labelled rows, and trains on what was captured.
5. `kairos compare` decides whether the new version may go further.
6. `kairos rollout`: copies, a fifth, half, all of the callers; promoted by itself, or sent back.
7. The new version is the champion. It was made for this world: the alarm is over.

The story is drawn as one picture. Everything runs on loopback, and ends with the script, whatever happens.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import onnx
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from examples.digits import train  # noqa: E402  (found by the line above, from wherever this is run)
from examples.mlops import learning, mlflow_server, picture  # noqa: E402
from examples.mlops.callers import Callers  # noqa: E402
from examples.mlops.hook import Hook  # noqa: E402
from examples.mlops.observer import Observer  # noqa: E402
from examples.mlops.processes import Failed, Server, kairos  # noqa: E402
from examples.mlops.registries import FolderRegistry, MlflowRegistry, Registry  # noqa: E402
from examples.mlops.story import Story  # noqa: E402
from examples.mlops.world import CHANGED, Group, Style, World  # noqa: E402
from server.pb.feedback_pb2 import FeedbackStatusRequest  # noqa: E402
from server.pb.feedback_pb2_grpc import FeedbackStub  # noqa: E402

HERE = Path(__file__).resolve().parent
SECRET = "not a secret: it never leaves this machine"
TRIGGERS = """\
every = "500ms"

[[rule]]
name = "drift"
signal = "drift"
model = "digits"
alarm = true
for = 2                     # two looks in a row
actions = ["retrain"]

[[rule]]
name = "accuracy"           # no action: it keeps a rollout from going on with a version that is often wrong
signal = "accuracy"
model = "digits"
below = 0.75
min_samples = 100

[action.retrain]
kind = "webhook"
url = "{url}"
secret_env = "HOOK_SECRET"
"""
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the story takes."""

    rate: float
    """Calls a second."""
    epochs: tuple[int, int]
    """Of the first training, and of the second."""
    calm_s: float
    """Before the world changes, once the first window is full."""
    rows: int
    """Labelled rows of the new world to learn from."""
    judged: int
    """Labelled rows by people who were not learnt from, to judge by, and for the baseline."""
    step_s: float
    """Each step of the rollout, at least."""
    samples: int
    """Answers of the candidate on each step, at least."""
    after_s: float
    """After the end of the rollout."""


FULL = Pace(
    rate=150, epochs=(20, 20), calm_s=8, rows=2400, judged=1200, step_s=4, samples=100, after_s=10
)  # fmt: skip
BRIEF = Pace(rate=200, epochs=(10, 8), calm_s=1, rows=900, judged=600, step_s=1, samples=40, after_s=1)


class Loop:
    """One run. `work` is an empty folder."""

    def __init__(self, work: Path, pace: Pace, *, mlflow: bool, kills: bool, patience_s: float) -> None:
        self.work, self.pace, self.kills = work, pace, kills
        self.until = time.monotonic() + patience_s
        self.story = Story()
        self.world = World.make()
        self.random = np.random.default_rng(1)
        self.workshop = work / "workshop"
        self.state = work / "state"
        self._mlflow = mlflow
        self._ends = ExitStack()
        self.registry: Registry
        self.server: Server
        self.callers: Callers
        self.observer: Observer
        self.hook: Hook

    def run(self) -> None:
        """All of it. Raises Failed."""
        with self._ends:
            self._begin()
            self._serve()
            self._calm()
            self._change()
            newcomers = self._retrain()
            self._judge(newcomers)
            self._roll_out()
            self._finish()

    # ---- the steps

    def _begin(self) -> None:
        self._step("Train the first version", "train")
        if self._mlflow:
            if not mlflow_server.environment_ready():
                console.print(
                    "MLflow gets an environment of its own, in .tools/mlflow; this once takes a minute or two"
                )
            self.registry = MlflowRegistry(self.work / "mlflow")
        else:
            self.registry = FolderRegistry(self.work / "models")
        self._ends.callback(self.registry.close)
        images, labels = self.world.draw_many(Group.FIRST, (Style.CLEAN,), 1600, self.random)
        self._save(1, learning.fit(images, labels, self.pace.epochs[0]))
        usual, truths = self.world.draw_many(Group.CALLERS, (Style.CLEAN,), 1500, self.random)
        np.savez(self.work / "usual.npz", image=usual, labels=truths)
        self._baseline(1, self.work / "usual.npz")
        version = self.registry.register(self._folder(1))
        console.print(f"version {version} is published in {self.registry.name}")

    def _serve(self) -> None:
        self._step("Serve the champion, and ask it", "serve")
        self.hook = Hook(SECRET)
        self._ends.callback(self.hook.close)
        triggers = self.work / "triggers.toml"
        triggers.write_text(TRIGGERS.format(url=self.hook.url))
        port = mlflow_server.free_port()
        arguments = [word for uri in self.registry.repositories for word in ("--model-repository", uri)]
        arguments += ["--model-control-mode", "poll", "--repository-poll-secs", "0.5", "--state-dir", str(self.state)]
        arguments += ["--source-cache-dir", str(self.work / "cache"), "--triggers", str(triggers)]
        arguments += ["--grpc-port", str(port), "--metrics-port", "0", "--log-format", "text"]
        environment = {**self.registry.environment, "HOOK_SECRET": SECRET}
        self.server = Server(console, arguments, environment, self.work / "server.log")
        self._ends.callback(self.server.stop)
        self.server.start()
        url = self.url = f"127.0.0.1:{port}"
        self.callers = Callers(url, self.world, self.story, self.pace.rate)
        self._ends.callback(self.callers.stop)
        self.observer = Observer(url, self.story, lambda text: console.print(f"  rollout: {text}"))
        self._ends.callback(self.observer.stop)

    def _calm(self) -> None:
        self._wait(lambda: "1" in self.observer.sight.alarms, "a full window")
        self._rest(self.pace.calm_s)
        self._tell("1")

    def _change(self) -> None:
        self._step("The world changes: rotated, noisy, inverted digits", "the world changes")
        self.callers.styles = CHANGED
        changed = time.time()
        self._wait(lambda: "drift" in self.observer.sight.alarms.get("1", ()), "an alarm")
        self.story.mark("alarm")
        console.print(f"the watch raises {', '.join(sorted(self.observer.sight.alarms['1']))}")
        self._wait(self.hook.arrived.is_set, "the event of the trigger")
        (event,) = self.hook.events.values()
        console.print(
            f"[bold]webhook[/] {event['type']} of {event['subject']}: {event['data']['signal']} is "
            f"{event['data']['value']:.2f}, {time.time() - changed:.1f} s after the change"
        )
        self._kill()

    def _retrain(self) -> int:
        """The number of the first request by a newcomer."""
        self._step("Retrain on what was captured, with labels from the outcomes", "gather and retrain")
        enough = self.callers.asked + self.pace.rows
        self._wait(lambda: self.callers.asked >= enough, f"{self.pace.rows:,} more requests")
        self.callers.group = Group.NEWCOMERS
        newcomers = self.callers.asked + 1
        images, labels, numbers = self._captured(lambda numbers: int(np.sum(numbers < newcomers)) >= self.pace.rows)
        chosen = numbers < newcomers
        console.print(f"{np.sum(chosen):,} captured images with an outcome to learn from")
        known, truths = self.world.draw_many(Group.FIRST, (Style.CLEAN,), 800, self.random)
        self._save(
            2,
            learning.fit(
                np.concatenate([images[chosen], known]), np.concatenate([labels[chosen], truths]), self.pace.epochs[1]
            ),
        )
        return newcomers

    def _judge(self, newcomers: int) -> None:
        self._step("Compare, on digits of people whom neither version knows", "compare")
        images, labels, numbers = self._captured(lambda numbers: int(np.sum(numbers >= newcomers)) >= self.pace.judged)
        chosen = numbers >= newcomers
        fresh = self.work / "fresh.npz"
        np.savez(fresh, image=images[chosen], labels=labels[chosen])
        kairos(
            console, "compare", self._folder(1) / "model.onnx", self._folder(2) / "model.onnx", "--data", fresh,
            "--labels", "labels", "--max-drop", "0", "--batch", "1", quiet=False,
        )  # fmt: skip
        self._baseline(2, fresh)

    def _roll_out(self) -> None:
        self._step("From copies to all callers", "roll out")
        pace = self.pace
        self._ask_rollout(
            "start", "digits", "2", "--stable", "1", "--steps", "0,20,50,100", "--step-time", f"{pace.step_s}s",
            "--samples", str(pace.samples), "--shadow-sample", "0.5", "--max-latency-ratio", "5",
            # The stable version is mostly wrong by now: agreeing with it is no merit.
            "--min-agreement", "0.1",
        )  # fmt: skip
        self._kill()
        version = self.registry.register(self._folder(2))
        self.registry.offer(version)
        console.print(f"version {version} is the challenger: the server fetches it")
        for stage, mark in (("SHADOW", "copies"), ("CANARY", "canary"), ("PROMOTED", "promoted")):
            self._wait_for_stage(stage)
            self.story.mark(mark)
            self._kill()
        self._wait(lambda: self.story.answers[-1].version == "2", "answers of the new version alone")

    def _finish(self) -> None:
        self._step("The new version is the champion", "")
        self.registry.crown("2")
        self._wait(lambda: set(self.observer.sight.alarms) == {"2"}, "the old version to go, and a full window")
        self._wait(lambda: not self.observer.sight.alarms["2"], "the end of the alarm")
        self.story.mark("alarm over")
        since = time.time()
        self._rest(self.pace.after_s)
        self._tell("2")
        self.callers.stop()
        self._check()
        console.print(
            f"accuracy: {self.story.accuracy(0, self._at('the world changes')):.1%} before the change, "
            f"{self.story.accuracy(self._at('alarm'), self._at('copies')):.1%} after it, "
            f"[bold]{self.story.accuracy(since):.1%}[/] now"
        )

    # ---- what they are made of

    def _step(self, title: str, mark: str) -> None:
        console.rule(f"[bold]{title}", align="left")
        if mark:
            self.story.mark(mark)

    def _at(self, mark: str) -> float:
        return next(at for at, name in self.story.marks if name == mark)

    def _folder(self, version: int) -> Path:
        return self.workshop / "digits" / str(version)

    def _save(self, version: int, parameters: train.Parameters) -> None:
        folder = self._folder(version)
        folder.mkdir(parents=True)
        onnx.save(train.export(parameters), folder / "model.onnx")
        for place in (folder, folder.parent):
            (place / "config.pbtxt").write_text((HERE / "config.pbtxt").read_text())
            (place / "labels.txt").write_text((train.REPOSITORY / "digits" / "labels.txt").read_text())

    def _baseline(self, version: int, data: Path) -> None:
        kairos(console, "baseline", "digits", "--repository", self.workshop, "--version", str(version), "--data", data)

    def _captured(self, enough: Callable[[learning.Integers], bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images, labels and request numbers, as soon as there are enough."""
        while True:
            kairos(console, "feedback", "export", self.work / "outcomes.parquet", "--state-dir", self.state)
            found = learning.captured(self.state / "capture" / "digits", self.work / "outcomes.parquet")
            if enough(found[2]):
                return found
            self._rest(2.0)

    def _tell(self, version: str) -> None:
        sight = self.observer.sight
        alarms = ", ".join(sorted(sight.alarms.get(version, ()))) or "none"
        console.print(f"version {version}: drift {sight.drift.get(version, np.nan):.2f}, alarms: {alarms}")

    def _kill(self) -> None:
        if self.kills:
            self.server.kill()

    def _ask_rollout(self, *arguments: str) -> None:
        kairos(console, "rollout", *arguments, "--url", self.url)

    def _wait_for_stage(self, wanted: str) -> None:
        """Or for a later one."""
        order = ("WAITING", "SHADOW", "CANARY", "PROMOTED")

        def reached() -> bool:
            stage = self.observer.stage
            if stage in ("ROLLED_BACK", "ABORTED"):
                raise Failed("the new version was sent back")
            return stage in order and order.index(stage) >= order.index(wanted)

        self._wait(reached, f"the rollout to reach {wanted}")

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._wait(lambda: time.monotonic() >= until, "a pause")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        """Raises Failed when there is no time left, or the callers gave up."""
        pause = threading.Event()
        with console.status(f"waiting for {what}"):
            while not condition():
                if self.callers.problem:
                    raise Failed(f"a call failed: {self.callers.problem}")
                if time.monotonic() > self.until:
                    raise Failed(f"no time left to wait for {what}")
                pause.wait(0.05)

    def _check(self) -> None:
        """Nothing got lost, and nothing came twice. Raises Failed."""
        if self.callers.problem:
            raise Failed(f"a call failed: {self.callers.problem}")
        with grpc.insecure_channel(self.url) as channel:
            kept = FeedbackStub(channel).Status(FeedbackStatusRequest(), timeout=30).outcomes  # type: ignore[no-untyped-call]
        console.print(
            f"{self.callers.asked:,} calls, none failed; {self.callers.reported:,} outcomes reported, {kept:,} kept; "
            f"{len(self.hook.events)} event; killed {self.server.kills} times"
        )
        if kept != self.callers.reported:
            raise Failed("the server does not hold the outcomes that it was told")
        if len(self.hook.events) != 1:
            raise Failed("an episode has one event")


@contextmanager
def folder(chosen: Path | None) -> Iterator[Path]:
    """The chosen one, or one that is removed again."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="kairos-mlops-") as scratch:
        yield Path(scratch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=("mlflow", "folder"), default="mlflow", help="(default: %(default)s)")
    parser.add_argument("--brief", action="store_true", help="less of everything")
    parser.add_argument(
        "--kill", action="store_true", help="kill the server in each step, to see that nothing gets lost"
    )
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which to give up (%(default)s)")
    parser.add_argument("--work", type=Path, help="an empty folder for all files (default: one that is removed again)")
    parser.add_argument("--picture", type=Path, default=Path("mlops.png"), help="where to draw (default: %(default)s)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    began = time.monotonic()
    with folder(chosen.work) as work:
        loop = Loop(
            work,
            BRIEF if chosen.brief else FULL,
            mlflow=chosen.source == "mlflow",
            kills=chosen.kill,
            patience_s=chosen.timeout,
        )
        try:
            loop.run()
        except (Failed, mlflow_server.NoMlflow) as error:
            console.print(f"[bold red]{type(error).__name__}:[/] ", end="")
            console.print(str(error), markup=False)
            return 1
    picture.draw(loop.story, loop.world, chosen.picture)
    console.print(f"{time.monotonic() - began:.0f} s; the story is drawn in {chosen.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
