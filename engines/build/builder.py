"""One build from end to end: prepare, make candidates, measure, gate, choose, publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from engines.backends import sweep
from engines.backends.cores import available_cores
from engines.backends.processor import Processor, this_processor
from engines.build import manifest
from engines.build.bench import Bench, Trial, cpu_seconds, sessions_of, usable_batches
from engines.build.calibrate import Progress
from engines.build.candidates import Maker
from engines.build.choose import Choice, Contender, choose
from engines.build.data import Dataset, dataset_of, open_data
from engines.build.errors import BuildFailed, Refused
from engines.build.options import BuildOptions, BuildReport, Candidate, Precision, Target
from engines.build.prepare import prepare
from engines.build.publish import check_name, publish, workshop
from engines.repository.layout import CONFIG_FILE

GPU: Final = Path("/dev/nvidiactl")
"""There where NVIDIA's driver is."""
MADE_UP_ROWS: Final = 32
"""Rows of noise that stand in where no data is given and none is needed."""


def build(
    options: BuildOptions,
    progress: Progress = lambda *_: None,
    processor: Processor | None = None,
    gpu: bool | None = None,
) -> BuildReport:
    """Build and publish one version. Raises BuildFailed, or Refused when the gate closes; nothing is published then.

    `processor` and `gpu` stand for the machine; None: this one.
    """
    target = _target(options, GPU.exists() if gpu is None else gpu)
    _check(options, target)
    with workshop(options.repository) as folder:
        maker = _start(options, progress, processor or this_processor(), target, folder)
        candidates = _timed(maker, maker.make())
        choice = _choose(options, target, candidates)
        chosen = next(candidate for candidate in candidates if candidate.label == choice.label)
        if options.precision is Precision.AUTO and target is Target.CPU:
            maker.notes.append(_layout(maker, chosen))
        _describe(maker, chosen, candidates, choice)
        accelerator = chosen.trial.accelerator
        if accelerator is not None and accelerator is not maker.reference.accelerator:
            maker.bench.name_accelerator(accelerator)
        return BuildReport(
            published=publish(chosen.trial.folder, options.repository, options.name),
            chosen=chosen,
            candidates=tuple(candidates),
            choice=choice,
            notes=tuple(maker.notes),
            target=target,
            judged_rows=len(maker.judge),
        )


def _target(options: BuildOptions, gpu: bool) -> Target:
    if options.target is not Target.AUTO:
        return options.target
    return Target.TENSORRT if gpu else Target.CPU


def _check(options: BuildOptions, target: Target) -> None:
    check_name(options.name)
    precision = options.precision
    if precision.quantises and options.calibration is None:
        raise BuildFailed(f"{precision.value} needs --calibration: some hundred rows of what the model will see")
    if not 0 <= options.max_drop < 1:
        raise BuildFailed("max-drop is a share between 0 and 1: 0.01 for one per cent")
    if not options.batches or min(options.batches) < 1:
        raise BuildFailed("batches are numbers of rows, 1 or more")
    if precision is Precision.BF16 and target is Target.TENSORRT:
        raise BuildFailed("bf16 for TensorRT cannot be verified: ONNX Runtime has no BF16 kernels; use fp16")


def _start(options: BuildOptions, progress: Progress, processor: Processor, target: Target, folder: Path) -> Maker:
    scratch = folder / "scratch"
    scratch.mkdir()
    progress("preparing the graph", 0, 1)
    prepared = prepare(options.model, scratch, quantising=options.precision.quantises)
    bench = Bench(folder / "staged" / options.name, processor)
    bench.furnish(options.repository / options.name)
    reference = bench.stage(prepared.model)
    calibration, judge, notes = _rows(options, reference)
    progress("preparing the graph", 1, 1)
    return Maker(
        options=options,
        progress=progress,
        target=target,
        prepared=prepared,
        bench=bench,
        reference=reference,
        calibration=calibration,
        judge=judge,
        scratch=scratch,
        configured=(options.repository / options.name / CONFIG_FILE).exists(),
        notes=[*prepared.notes, *notes],
    )


def _rows(options: BuildOptions, reference: Trial) -> tuple[Dataset | None, Dataset, list[str]]:
    """What to calibrate on, what to judge by, and what is to be said about it."""
    inputs = reference.definition.spec.inputs
    given = options.calibration
    judge = None if options.data is None else open_data(options.data, inputs, options.labels, options.preprocessing)
    if given is None or given.suffix == ".json":
        if judge is not None:
            return None, judge, []
        if given is not None:
            raise BuildFailed("a calibration table holds no rows to judge by: give --data, too")
        return None, _noise(reference), [f"no data is given: judged by {MADE_UP_ROWS} rows of noise"]
    calibration = open_data(given, inputs, "" if judge is not None else options.labels, options.preprocessing)
    if calibration.constant():
        if judge is None:
            raise BuildFailed(f"{given}: all rows are the same; there is nothing to calibrate on or to judge by")
        return calibration, judge, [f"{given}: all rows are the same; calibrating on them is asking for trouble"]
    if judge is not None:
        return calibration, judge, []
    if len(calibration) < 8:
        raise BuildFailed(f"{given}: {len(calibration)} rows are too few to calibrate on some and judge by others")
    learnt, held_out = calibration.split()
    return learnt, held_out, [f"calibrated on {len(learnt)} rows, judged by the other {len(held_out)}"]


def _noise(reference: Trial) -> Dataset:
    spec = reference.definition.spec
    if spec.batched:
        return dataset_of(sweep.sample_inputs(spec, MADE_UP_ROWS), source="noise")
    return dataset_of({name: array[None] for name, array in sweep.sample_inputs(spec, 0).items()}, source="noise")


def _timed(maker: Maker, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with their times, taken side by side in one run, FP32 always among them."""
    baseline = maker.baseline()
    everyone = {candidate.label: candidate for candidate in (*candidates, baseline)}
    batches = usable_batches([candidate.trial for candidate in everyone.values()], maker.options.batches)
    engines = {label: maker.bench.engine(candidate.trial) for label, candidate in everyone.items()}
    maker.progress("measuring speed", 0, 1)
    seconds = cpu_seconds(engines, batches, maker.judge)
    maker.progress("measuring speed", 1, 1)
    return [replace(candidate, seconds=seconds[label]) for label, candidate in everyone.items()]


def _choose(options: BuildOptions, target: Target, candidates: Sequence[Candidate]) -> Choice:
    """Raises Refused when nothing passes the gate."""
    auto = options.precision is Precision.AUTO
    # Times on a processor say nothing about TensorRT.
    contenders = [
        Contender(
            label=candidate.label,
            drop=candidate.comparison.drop,
            judged_by=candidate.comparison.judged_by,
            seconds={} if target is Target.TENSORRT else candidate.seconds,
        )
        for candidate in candidates
    ]
    baseline = next(contender for contender in contenders if contender.label == Precision.FP32.value)
    wanted = [
        contender
        for contender, candidate in zip(contenders, candidates, strict=True)
        if auto or candidate.precision is options.precision
    ]
    choice = choose(wanted, options.max_drop, baseline, never_slower=auto)
    if choice.label is None:
        raise Refused(f"nothing is published: {'; '.join(f'{label} {why}' for label, why in choice.verdicts.items())}")
    return choice


def _layout(maker: Maker, chosen: Candidate) -> str:
    """What the server would choose here; it is said and not written, since the server may run on another machine."""
    said = "instances and threads are the server's choice at each load"
    spec, options = chosen.trial.definition.spec, chosen.trial.definition.engine
    sessions = sessions_of(chosen.trial, maker.bench.processor)
    maker.progress("trying layouts", 0, 1)
    try:
        layout, _ = sweep.choose(
            spec, sweep.layouts(available_cores(), options.instances, options.intra_op_threads), sessions.engine
        )
    except Exception as error:  # noqa: BLE001  (as in the server: made-up inputs may be refused; real ones will do)
        reason, _, _ = str(error).partition("\n")
        return f"{said}; they cannot be tried with made-up inputs: {reason}"
    finally:
        maker.progress("trying layouts", 1, 1)
    where = " on the event loop" if layout.inline else ""
    return f"{said}; here, now, it would choose {layout.instances} x {layout.threads} thread(s){where}"


def _describe(maker: Maker, chosen: Candidate, candidates: Sequence[Candidate], choice: Choice) -> None:
    """Put the manifest, and the calibration table, beside the chosen model."""
    options, folder = maker.options, chosen.trial.folder
    table = chosen.table
    if table is not None:
        (folder / manifest.TABLE_FILE).write_text(table.to_json() + "\n", encoding="utf-8")
    manifest.write(
        folder,
        {
            "source": {"file": options.model.name, "sha256": maker.prepared.source_digest},
            "precision": chosen.precision,
            "target": maker.target,
            "accelerator": chosen.trial.accelerator,
            "scheme": None if chosen.scheme is None else {"name": chosen.scheme.name, "is": chosen.scheme.summary},
            "layers": chosen.layers,
            "kept_in_higher_precision": chosen.kept,
            "calibration": None
            if table is None
            else {"method": table.method, "data": table.data_digest, "rows": table.rows},
            "gate": {
                "max_drop": options.max_drop,
                "data": maker.judge.digest,
                "rows": len(maker.judge),
                "labels": maker.judge.labels is not None,
            },
            "processor": maker.bench.processor,
            "choice": choice,
            "candidates": [
                {
                    "label": candidate.label,
                    "bytes": candidate.trial.size_bytes,
                    "kept_in_higher_precision": candidate.kept,
                    "cpu_seconds": candidate.seconds,
                    "comparison": candidate.comparison,
                }
                for candidate in candidates
            ],
            "notes": maker.notes,
        },
    )
