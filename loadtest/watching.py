"""How the watch errs: false alarms without drift, and how many rows it takes to find drift.

    python loadtest/watching.py [--windows N] [--runs N] [--markdown FILE]

Makes the tables of docs/watching.md. Everything is computed, nothing is timed: the same command gives the same tables
on any machine. `--markdown` puts them between the markers of the page.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy import ndimage, stats
from sklearn.datasets import load_digits

from engines.backends.processor import this_processor
from engines.backends.sweep import THRIFTIEST
from engines.build.bench import open_engine, open_version
from engines.request import InferRequest, InferResponse
from engines.spec import ModelSpec, TensorSpec
from engines.tensor import Array, DType, from_array
from server.watch import scores
from server.watch.baseline import make_reference
from server.watch.compare import Comparer
from server.watch.monitor import Monitor
from server.watch.observation import Observation
from server.watch.plan import plan_of
from server.watch.reference import Reference
from server.watch.settings import Hints, WatchOptions
from server.watch.table import Table

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "models" / "digits" / "2"
LEVEL = 0.01
REFERENCE, WINDOW = 2000, 500
COLUMNS = 16
MARKERS = ("<!-- tables: begin -->", "<!-- tables: end -->")
SIGNALS = ("drift", "prediction_drift", "confidence")

Rows = NDArray[np.float64]


def world(random: np.random.Generator, rows: int) -> Rows:
    """16 features as tables have them: related, skewed, few-valued, categorical and partly missing ones."""
    found = random.normal(size=(rows, COLUMNS))
    found[:, 1] += found[:, 0]
    found[:, 2] = np.exp(found[:, 2])
    found[:, 3] = np.round(found[:, 3], 1)
    found[:, 4] = random.choice(5, rows, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    found[:, 5] = random.choice(2, rows, p=[0.9, 0.1])
    found[random.random(rows) < 0.03, 6] = np.nan
    return found


# False alarms ---------------------------------------------------------------------------------------------------------


def tests(reference: Rows, window: Rows) -> dict[str, float]:
    """P-values of each score between two samples of one column each, fit for it."""
    edges = np.quantile(reference[:, 0], np.arange(1, 10) / 10)
    binned = [np.bincount(np.searchsorted(edges, rows[:, 0]), minlength=10) for rows in (reference, window)]
    kinds = [np.bincount(rows[:, 4].astype(int), minlength=5) for rows in (reference, window)]
    gone = [(int(np.isnan(rows[:, 6]).sum()), len(rows)) for rows in (reference, window)]
    numbers = [rows[:, [0, 1, 2, 7, 8, 9]] for rows in (reference, window)]
    waves = scores.Waves.over(numbers[0])
    return {
        "Kolmogorov-Smirnov": scores.kolmogorov_smirnov(reference[:, 0], window[:, 0]).p_value,
        "Wasserstein, 199 permutations": scores.permutation(
            scores.wasserstein, reference[:, 0], window[:, 0], times=199
        ).p_value,
        "PSI, 10 bins": scores.population_stability(*binned).p_value,
        "Jensen-Shannon, 10 bins": scores.jensen_shannon(*binned).p_value,
        "chi-square, 5 categories": scores.chi_square(*kinds).p_value,
        "missing values (Fisher)": scores.missing(*gone).p_value,
        "mean discrepancy, 6 columns": scores.mean_discrepancy(waves.of(numbers[0]), waves.of(numbers[1])).p_value,
        "lower mean (Mann-Whitney)": scores.lower(reference[:, 0], window[:, 0]).p_value,
    }


def false_alarms(windows: int) -> dict[str, int]:
    """Alarms at the level in so many windows without drift, each with a reference of its own."""
    random = np.random.default_rng(7)
    alarms: dict[str, int] = {}
    for _ in range(windows):
        reference, window = world(random, REFERENCE), world(random, WINDOW)
        table = Table([plan_of("features", reference)])
        table.add(table.of_arrays({"features": reference}, REFERENCE))
        found = tests(reference, window)
        whole = Comparer(table).compare(table.of_arrays({"features": window}, WINDOW))
        found[f"all {COLUMNS} columns and all of them jointly, corrected (Holm)"] = whole.p_value()
        for name, p_value in found.items():
            alarms[name] = alarms.get(name, 0) + (p_value <= LEVEL)
    return alarms


def monitor_alarms(windows: int) -> dict[str, int]:
    """Window lengths without drift in which a monitor, looking four times a window, raised an alarm."""
    random = np.random.default_rng(11)
    alarms = dict.fromkeys((f"monitor: {signal}" for signal in SIGNALS), 0)
    references = 20
    for _ in range(references):
        weights = random.normal(size=(COLUMNS, 4))
        stream = Stream(features_spec(), lambda rows, weights=weights: {"logits": np.nan_to_num(rows) @ weights})
        stream.learn(world(random, REFERENCE))
        stream.send(world(random, WINDOW))
        for _ in range(windows // references):
            found = stream.send(world(random, WINDOW))
            for signal in SIGNALS:
                alarms[f"monitor: {signal}"] += signal in found
    return alarms


# Power ----------------------------------------------------------------------------------------------------------------


@dataclass
class Stream:
    """A monitor, and a model in front of it."""

    spec: ModelSpec
    answer: Callable[[Array], Mapping[str, Array]]
    monitor: Monitor | None = None
    sent: int = 0

    def learn(self, rows: Array) -> None:
        """Watch from now on, against these rows."""
        name = self.spec.inputs[0].name
        reference = make_reference(
            self.spec, Hints(), Memory(name, rows), lambda arrays: self.answer(arrays[name]), lambda *_: None,
            model_digest="",
        )  # fmt: skip
        self.watch(reference)

    def watch(self, reference: Reference) -> None:
        """Watch from now on, with empty windows."""
        options = WatchOptions(rate=1.0, window_rows=WINDOW, level=LEVEL, look_s=0.0)
        self.monitor = Monitor(self.spec, options, reference)
        self.sent = 0

    def send(self, rows: Array) -> dict[str, int]:
        """One request a row; returns after how many rows each signal raised its first alarm."""
        assert self.monitor is not None
        tensor = self.spec.inputs[0]
        answers = self.answer(rows)
        first: dict[str, int] = {}
        for index in range(len(rows)):
            inputs = (from_array(tensor.name, tensor.dtype, rows[index : index + 1].astype(tensor.dtype.numpy)),)
            outputs = tuple(
                from_array(each.name, each.dtype, answers[each.name][index : index + 1].astype(each.dtype.numpy))
                for each in self.spec.outputs
            )
            request = InferRequest(model="m", version=1, inputs=inputs, wanted=())
            response = InferResponse(model="m", version=1, outputs=outputs)
            self.sent += 1
            self.monitor.observe([Observation(request, response, float(self.sent))])
            if self.sent % self.monitor.options.stride == 0:
                for signal, reading in self.monitor.readings().items():
                    if reading.alarm:
                        first.setdefault(signal, index + 1)
        return first


@dataclass
class Memory:
    """Rows that a reference is made of."""

    name: str
    rows: Array
    source: str = "memory"
    digest: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def spread(self, most: int) -> Memory:
        """The first of them."""
        return Memory(self.name, self.rows[:most])

    def take(self, start: int, stop: int) -> dict[str, Array]:
        """Rows as arrays."""
        return {self.name: self.rows[start:stop]}


def features_spec() -> ModelSpec:
    """A model of the features of `world`."""
    return ModelSpec(
        name="features", version=1, platform="", max_rows=64,
        inputs=(TensorSpec("features", DType.FP64, (COLUMNS,)),), outputs=(TensorSpec("logits", DType.FP64, (4,)),),
    )  # fmt: skip


def shifted(column: int, by: float) -> Callable[[Rows], Rows]:
    """Add to one feature."""

    def change(rows: Rows) -> Rows:
        rows[:, column] += by
        return rows

    return change


def swapped(one: int, other: int) -> Callable[[Rows], Rows]:
    """Exchange the codes of two categories."""

    def change(rows: Rows) -> Rows:
        rows[:, 4] = np.select([rows[:, 4] == one, rows[:, 4] == other], [other, one], rows[:, 4])
        return rows

    return change


def constant(rows: Rows) -> Rows:
    """A sensor that always says the same."""
    rows[:, 8] = 0.0
    return rows


def dying(rows: Rows) -> Rows:
    """A sensor that says nothing any more every fifth time."""
    rows[::5, 8] = np.nan
    return rows


def unrelated(rows: Rows) -> Rows:
    """Two features that belong together come apart; neither looks different by itself."""
    rows[:, 1] = np.random.default_rng(3).permutation(rows[:, 1])
    return rows


TABLES: Mapping[str, Callable[[Rows], Rows]] = {
    "one of 16 features shifted by 0.25 standard deviations": shifted(8, 0.25),
    "one of 16 features shifted by 0.5 standard deviations": shifted(8, 0.5),
    "one of 16 features shifted by 1 standard deviation": shifted(8, 1.0),
    "two categories swapped, of 40 % and 30 % of the rows": swapped(0, 1),
    "two categories swapped, of 40 % and 5 % of the rows": swapped(0, 4),
    "a sensor stuck at its mean": constant,
    "a sensor missing in every fifth row": dying,
    "two related features come apart, each looks as before": unrelated,
}
IMAGES: Mapping[str, Callable[[Array], Array]] = {
    "digits rotated by 10 degrees": lambda images: turned(images, 10),
    "digits rotated by 20 degrees": lambda images: turned(images, 20),
    "digits rotated by 90 degrees": lambda images: turned(images, 90),
    "digits with noise of 1/8 of the range": lambda images: noisy(images, 2.0),
    "digits that are 10 % darker": lambda images: images * 0.9,
    "only the digits 0 to 4 are left": lambda images: images,
}


def turned(images: Array, degrees: float) -> Array:
    """Turn each image."""
    return np.clip(ndimage.rotate(images, degrees, axes=(3, 2), reshape=False, order=1), 0, 16)


def noisy(images: Array, deviation: float) -> Array:
    """Add noise to each pixel."""
    return np.clip(images + np.random.default_rng(5).normal(0, deviation, images.shape), 0, 16)


def found_after(stream: Stream, before: Array, after: Array) -> dict[str, int]:
    """Rows of drift until each signal's first alarm; 500 good rows have filled the window before."""
    stream.send(before)
    return stream.send(after)


def table_power(runs: int) -> Iterator[tuple[str, list[dict[str, int]]]]:
    """Drift in features."""
    for name, change in TABLES.items():
        random = np.random.default_rng(13)
        found = []
        for _ in range(runs):
            weights = random.normal(size=(COLUMNS, 4))
            stream = Stream(features_spec(), lambda rows, weights=weights: {"logits": np.nan_to_num(rows) @ weights})
            stream.learn(world(random, REFERENCE))
            found.append(found_after(stream, world(random, WINDOW), change(world(random, 2 * WINDOW))))
        yield name, found


def image_power(runs: int) -> Iterator[tuple[str, list[dict[str, int]]]]:
    """Drift in images, with the digit classifier of examples/."""
    trial = open_version(DIGITS)
    engine = open_engine(trial, THRIFTIEST, this_processor())
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.float32).reshape(-1, 1, 8, 8)
    wanted = [tensor.name for tensor in trial.definition.spec.outputs]
    for name, change in IMAGES.items():
        random = np.random.default_rng(17)
        found = []
        for _ in range(runs):
            order = random.permutation(len(images))
            known, fresh = order[:900], order[900:]
            stream = Stream(
                trial.definition.spec, lambda rows: engine.execute({"image": rows.astype(np.float32)}, wanted)
            )
            stream.learn(images[known])
            later = random.choice(fresh[labels[fresh] < 5] if "0 to 4" in name else fresh, 2 * WINDOW)
            found.append(found_after(stream, images[fresh[:WINDOW]], change(images[later])))
        yield name, found
    engine.close()


# Tables ---------------------------------------------------------------------------------------------------------------


def cell(found: Sequence[dict[str, int]], signal: str) -> str:
    """Median and worst number of rows; how often it was not found at all."""
    rows = [each[signal] for each in found if signal in each]
    if len(rows) < len(found) / 2:
        return "-" if not rows else f"in {len(rows)} of {len(found)} runs"
    text = f"{statistics.median_low(rows)}, at most {max(rows)}"
    return text if len(rows) == len(found) else f"{text}; not in {len(found) - len(rows)} of {len(found)} runs"


def lines(windows: int, runs: int) -> Iterator[str]:
    """Both tables."""
    bound = int(stats.binom.ppf(0.99, windows, LEVEL))
    yield (
        f"Level {LEVEL:.0%}, windows of {WINDOW} rows, references of {REFERENCE} rows. Of {windows} windows without "
        f"drift, {windows * LEVEL:.0f} should raise an alarm, and with a probability of 99 % no more than {bound} do."
    )
    yield ""
    yield f"| score | false alarms in {windows} windows | within the bound |"
    yield "|---|---|---|"
    for name, alarms in (false_alarms(windows) | monitor_alarms(windows)).items():
        yield f"| {name} | {alarms} | {'yes' if alarms <= bound else '**no**'} |"
    yield ""
    yield (
        f"Rows with drift until the first alarm, after a window without: median and maximum of {runs} runs. With a "
        "sampling rate of 10 %, ten times as many requests pass."
    )
    yield ""
    yield "| drift | inputs (`drift`) | answers (`prediction_drift`) | `confidence` |"
    yield "|---|---|---|---|"
    for power in (table_power, image_power):
        for name, found in power(runs):
            yield f"| {name} | {' | '.join(cell(found, signal) for signal in SIGNALS)} |"


def main() -> None:
    """Compute, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--markdown", type=Path, help="put the tables between the markers of this page")
    arguments = parser.parse_args()
    text = ""
    console = Console()
    for line in lines(arguments.windows, arguments.runs):
        console.print(line, highlight=False, soft_wrap=True)
        text += f"{line}\n"
    if arguments.markdown:
        page = arguments.markdown.read_text()
        head, rest = page.split(MARKERS[0])
        tail = rest.split(MARKERS[1])[1]
        arguments.markdown.write_text(f"{head}{MARKERS[0]}\n{text}{MARKERS[1]}{tail}")


if __name__ == "__main__":
    main()
