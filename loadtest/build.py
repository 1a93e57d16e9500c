"""What building pays: accuracy, size and speed of each precision, on networks of four kinds.

python -m loadtest.build [--json build.json] [NETWORK ...]

All candidates of a network are timed side by side in one run, one thread each, as processor time. Digits and breast
cancer are real data with labels; ResNet-50 (the graph of the onnx wheel) and the encoder have seeded weights, so that
agreement with FP32 is all that can be said of their answers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from engines.backends.processor import this_processor
from engines.build.builder import build
from engines.build.choose import speedups
from engines.build.manifest import plain
from engines.build.options import BuildOptions, BuildReport, Candidate, Precision, Target
from examples.digits import train
from server.cli.progress import bars
from tests.support import digits, networks


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network with its rows."""

    model: Path
    calibration: Path
    data: Path
    labels: str = ""
    batches: tuple[int, ...] = (1, 32)


def digits_case(folder: Path) -> Case:
    """The digit classifier of the examples."""
    rows = folder / "train.npz"
    np.savez(rows, image=train.load_split().images)
    return Case(model=digits.MODEL, calibration=rows, data=digits.HELD_OUT, labels="labels")


def tabular_case(folder: Path) -> Case:
    """A perceptron on scikit-learn's breast cancer table."""
    features, labels = load_breast_cancer(return_X_y=True)
    seen, held_out, seen_labels, held_out_labels = train_test_split(features, labels, random_state=0, test_size=0.35)
    scaler = StandardScaler().fit(seen)
    network = MLPClassifier((128, 64), max_iter=300, random_state=0).fit(scaler.transform(seen), seen_labels)
    layers = [(w, b) for w, b in zip(network.coefs_, network.intercepts_, strict=True)]
    last, bias = layers[-1]  # one logit; two classes are its two signs
    layers[-1] = (np.hstack([-last / 2, last / 2]), np.hstack([-bias / 2, bias / 2]))
    model = folder / "tabular.onnx"
    onnx.save(networks.perceptron(layers, softmax=True), model)
    np.savez(folder / "seen.npz", features=scaler.transform(seen).astype(np.float32))
    np.savez(folder / "held.npz", features=scaler.transform(held_out).astype(np.float32), labels=held_out_labels)
    return Case(model=model, calibration=folder / "seen.npz", data=folder / "held.npz", labels="labels")


def encoder_case(folder: Path) -> Case:
    """A transformer encoder of 6 layers, 256 wide, on 32 words."""
    random = np.random.default_rng(1)
    onnx.save(networks.encoder(layers=6, width=256, heads=8, length=32), folder / "encoder.onnx")
    for name, rows in (("seen", 256), ("held", 256)):
        np.savez(folder / f"{name}.npz", ids=random.integers(0, 64, (rows, 32)))
    return Case(
        model=folder / "encoder.onnx", calibration=folder / "seen.npz", data=folder / "held.npz", batches=(1, 8)
    )


def resnet_case(folder: Path) -> Case:
    """ResNet-50 on smooth random pictures."""
    random = np.random.default_rng(2)
    onnx.save(networks.resnet50(), folder / "resnet.onnx")
    for name, rows in (("seen", 32), ("held", 48)):
        coarse = random.normal(0, 1, (rows, 3, 7, 7)) * random.uniform(0.3, 3, (rows, 3, 1, 1))
        np.save(folder / f"{name}.npy", np.kron(coarse, np.ones((1, 1, 32, 32))).astype(np.float32))
    return Case(model=folder / "resnet.onnx", calibration=folder / "seen.npy", data=folder / "held.npy", batches=(1, 4))


CASES: dict[str, Callable[[Path], Case]] = {
    "digits": digits_case,
    "tabular": tabular_case,
    "encoder": encoder_case,
    "resnet50": resnet_case,
}


def measure(name: str, target: Target, console: Console) -> BuildReport:
    """Build `auto` for the target, with all that it measures on the way."""
    with tempfile.TemporaryDirectory() as scratch, bars(console) as progress:
        folder = Path(scratch)
        case = CASES[name](folder)
        options = BuildOptions(
            model=case.model,
            name=name,
            repository=folder / "repository",
            precision=Precision.AUTO,
            target=target,
            calibration=case.calibration,
            data=case.data,
            labels=case.labels,
            batches=case.batches,
            state_dir=folder / "state",
        )
        return build(options, progress)


def show(name: str, report: BuildReport, spent: float, console: Console) -> None:
    """One table for each network and target."""
    baseline = next(candidate for candidate in report.candidates if candidate.label == "fp32")
    batches = list(baseline.seconds)
    table = Table(title=f"{name} for {report.target.value}", box=None)
    for title in ("candidate", "size", "accuracy", "agreement", *(f"speed at {rows}" for rows in batches), "verdict"):
        table.add_column(title)
    for candidate in report.candidates:
        table.add_row(*_cells(candidate, baseline, batches), report.choice.verdicts[candidate.label])
    console.print(table)
    for note in report.notes:
        console.print(f"- {note}")
    console.print(f"auto: {report.choice.reason} (built in {spent:.0f} s)\n")


def _cells(candidate: Candidate, baseline: Candidate, batches: list[int]) -> list[str]:
    compared = candidate.comparison
    ratios = speedups(candidate.seconds, baseline.seconds)
    return [
        candidate.label,
        f"{candidate.trial.size_bytes / baseline.trial.size_bytes:.1%}",
        "" if compared.accuracy is None else f"{compared.accuracy[1]:.2%}",
        "" if compared.agreement is None else f"{compared.agreement:.2%}",
        *(f"{ratios[rows]:.2f}" for rows in batches),
    ]


def main() -> None:
    """Run the networks that are named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"any of {', '.join(CASES)}; default: all")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments = parser.parse_args()
    console = Console(width=150)
    console.print(f"{this_processor()}\n")
    figures = {}
    for name in arguments.networks or CASES:
        for target in (Target.CPU, Target.TENSORRT):
            began = time.monotonic()
            report = measure(name, target, Console(stderr=True))
            show(name, report, time.monotonic() - began, console)
            figures[f"{name} for {target.value}"] = plain(report.candidates)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
