"""A small student learns from a served teacher, and takes its place if it is good enough.

    python examples/distil/distil.py                    # all of it, a minute
    python examples/distil/distil.py --shuffled         # a student that learnt nothing: the gate stays closed

1. Serves the digits teacher, as an operator would.
2. `kairos label`: the teacher's soft targets for images that nobody has labelled.
3. Trains a student with a seventh of the teacher's parameters on them (NumPy alone), and exports it as ONNX.
4. `kairos compare`: agreement, accuracy, size, speed. A student that loses too much ends it here, with status 2.
5. `kairos rollout start`, while nobody can be answered by the student yet; then the student is published, sees copies,
   gets a tenth, half and all of the callers, and is promoted, or rolled back by itself (status 3).

Each command is shown before it runs. `--work` keeps what they leave behind; `--shuffled` trains a student on the wrong
targets, to see the gate closed; `--no-gate` lets that one through to the rollout, to see it rolled back.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import tritonclient.grpc as triton
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from examples.digits import train  # noqa: E402  (found by the line above, from wherever this is run)
from server.cli.demo import Listener  # noqa: E402

TEACHER, STUDENT = 2, 3
CHANNELS = (8, 16)
TEMPERATURE = 3.0
COPIES = 3
"""Unlabelled images: each training image, moved about this often."""
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Work:
    """Where everything lies."""

    folder: Path

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def unlabelled(self) -> Path:
        return self.folder / "unlabelled.npz"

    @property
    def targets(self) -> Path:
        return self.folder / "targets.npz"

    @property
    def student(self) -> Path:
        return self.folder / "student.onnx"


def prepare(work: Work) -> None:
    """A repository with the teacher alone, and images without labels."""
    source = train.REPOSITORY / "digits"
    shutil.copytree(source / str(TEACHER), work.models / "digits" / str(TEACHER))
    for name in ("config.pbtxt", "labels.txt"):
        shutil.copy2(source / name, work.models / "digits" / name)
    random = np.random.default_rng(0)
    images = train.load_split().images
    np.savez_compressed(
        work.unlabelled, image=np.concatenate([images, *(train.shifted(images, random) for _ in range(COPIES - 1))])
    )


@contextmanager
def teaching(work: Work) -> Iterator[str]:
    """The server's address, while the block lasts."""
    arguments = [
        "serve", "--model-repository", str(work.models), "--model-control-mode", "poll",
        "--repository-poll-secs", "0.5", "--state-dir", str(work.folder / "state"),
        "--grpc-port", "0", "--metrics-port", "0", "--log-format", "text",
    ]  # fmt: skip
    show(arguments)
    with subprocess.Popen([sys.executable, "-m", "server", *arguments], stderr=subprocess.PIPE, text=True) as process:
        listener = Listener(process, verbose=False)
        try:
            url = listener.url()
            if url is None:
                listener.show()
                sys.exit("the server did not start")
            yield url
        finally:
            process.terminate()
            listener.join()


def show(arguments: list[str]) -> None:
    """The command, as a person would type it."""
    console.print(f"\n[bold]$ kairos {shlex.join(arguments)}[/]", markup=True)


def kairos(*arguments: str) -> int:
    """Run a command; its status."""
    show(list(arguments))
    return subprocess.run([sys.executable, "-m", "server", *arguments], check=False).returncode


def learn(images: train.Floats, targets: train.Floats, epochs: int, seed: int = 3) -> train.Parameters:
    """Train on the teacher's logits [N,10] instead of labels.

    The loss is the cross-entropy with the teacher's distribution, both softened by the same temperature (Hinton,
    Vinyals and Dean, Distilling the knowledge in a neural network, arXiv:1503.02531); its gradient by the student's
    logits is the difference of the two over the temperature, and is multiplied by the temperature's square, so that
    the temperature does not change the size of the steps.
    """
    random = np.random.default_rng(seed)
    parameters = train.initial(CHANNELS, random)
    optimiser = train.Adam([variable for pair in parameters for variable in pair])
    wanted = train.softmax(targets / np.float32(TEMPERATURE))
    for epoch in track(range(epochs), "training the student", console=console, transient=True):
        rate = 0.02 * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        for rows in np.array_split(random.permutation(len(images)), len(images) // 32):
            logits, tape = train.forward(parameters, images[rows])
            difference = train.softmax(logits / np.float32(TEMPERATURE)) - wanted[rows]
            signal = difference * np.float32(TEMPERATURE / len(rows))
            optimiser.step(train.backpropagate(tape, signal), rate)
    return parameters


def traffic(url: str, stop: threading.Event, answered: Counter[str]) -> None:
    """Callers with names of their own who ask for digits, and name no version, until told to stop."""
    with np.load(train.HELD_OUT, allow_pickle=False) as held_out:
        images = held_out["images"].astype(np.float32)
    with triton.InferenceServerClient(url) as client:
        number = 0
        while not stop.is_set():
            image = images[number % len(images)][np.newaxis]
            given = triton.InferInput("image", list(image.shape), "FP32").set_data_from_numpy(image)
            try:
                reply = client.infer("digits", [given], request_id=f"caller {number % 500}", client_timeout=5.0)
                answered[f"version {reply.get_response().model_version}"] += 1
            except triton.InferenceServerException as error:
                answered[error.status() or "error"] += 1
            number += 1


def publish(work: Work) -> None:
    """The student becomes version 3, in one step, so that the server sees all of it or nothing."""
    fresh = work.models / "digits" / ".student"
    fresh.mkdir()
    shutil.copy2(work.student, fresh / "model.onnx")
    fresh.rename(work.models / "digits" / str(STUDENT))
    console.print(f"\n[bold]$ mv .student {work.models}/digits/{STUDENT}[/]   (published)")


def lead(work: Work, url: str) -> int:
    """From the teacher to the student; the status of `kairos rollout status`."""
    began = kairos(
        "rollout", "start", "digits", str(STUDENT), "--steps", "0,10,50,100", "--step-time", "2s", "--samples", "100",
        "--min-agreement", "0.93", "--shadow-sample", "0.5", "--max-latency-ratio", "3", "--url", url,
    )  # fmt: skip
    if began:
        return began
    publish(work)
    stop, answered = threading.Event(), Counter[str]()
    caller = threading.Thread(target=traffic, args=(url, stop, answered))
    caller.start()
    try:
        status = kairos("rollout", "status", "digits", "--watch", "--url", url)
    finally:
        stop.set()
        caller.join()
    console.print(
        "callers were answered by " + ", ".join(f"{name}: {count:,}" for name, count in sorted(answered.items()))
    )
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="an empty folder for all files (default: one that is removed again)")
    parser.add_argument("--epochs", type=int, default=12, help="rounds of training (default: %(default)s)")
    parser.add_argument("--shuffled", action="store_true", help="train on the wrong targets")
    parser.add_argument("--no-gate", action="store_true", help="start the rollout whatever the comparison says")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Work(arguments.work or Path(scratch))
        prepare(work)
        with teaching(work) as url:
            if status := kairos("label", str(work.unlabelled), str(work.targets), "--model", "digits", "--url", url):
                return status
            with (
                np.load(work.unlabelled, allow_pickle=False) as data,
                np.load(work.targets, allow_pickle=False) as taught,
            ):
                images, targets = data["image"], taught["logits"]
            if arguments.shuffled:
                targets = np.roll(targets, 1, axis=0)
            student = learn(images, targets, arguments.epochs)
            onnx.save(train.export(student), work.student)
            size = sum(variable.size for pair in student for variable in pair)
            console.print(f"\nstudent: {size:,} parameters, taught by {len(images):,} images without a label")
            passes = kairos(
                "compare", str(work.models / "digits" / str(TEACHER)), str(work.student), "--data", str(train.HELD_OUT),
                "--labels", "labels", "--max-drop", "0.02", "--json", str(work.folder / "comparison.json"),
            )  # fmt: skip
            if passes != 0 and not arguments.no_gate:
                drop = json.loads((work.folder / "comparison.json").read_text())["comparison"]["drop"]
                console.print(f"[bold red]the gate stays closed:[/] the student loses {drop:.2%}")
                return passes
            return lead(work, url)


if __name__ == "__main__":
    sys.exit(main())
