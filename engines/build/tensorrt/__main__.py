"""The builder's own process: `python -m engines.build.tensorrt GPU < job.json`.

TensorRT may end the process that builds, or take all of its memory; neither may happen to whoever asked. What is done
is told on standard output, one JSON object a line: `{"step": ..., "done": ..., "of": ...}`, at the end
`{"built": BYTES}` or `{"error": TEXT}`.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from engines.backends.cuda.find import find_cuda
from engines.backends.tensorrt.library import load
from engines.build.errors import BuildFailed
from engines.build.tensorrt import timings
from engines.build.tensorrt.network import build_plan
from engines.build.tensorrt.options import PlanJob
from engines.errors import LoadFailed


def tell(**what: object) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def run(trt: Any, job: PlanJob) -> int:  # noqa: ANN401  (a module without types)
    """Build, and put the plan and what was measured where the job says; the plan's size."""
    known = timings.read(job.timing_cache)
    plan, measured = build_plan(trt, job, known, lambda step, done, of: tell(step=step, done=done, of=of))
    # Others may have built in the meantime; the larger cache knows more, and TensorRT takes either.
    timings.add(job.timing_cache, lambda now: max(now, measured, key=len))
    timings.replace(job.plan, plan)
    return len(plan)


def main() -> int:
    """Read the job, build, tell. Returns the process's status."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    job = PlanJob.from_json(sys.stdin.read())
    try:
        # The driver first: without a device TensorRT ends the process, and nobody would know why.
        device = find_cuda().device(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
        device.bind()
        tell(built=run(load(), job))
    except (BuildFailed, LoadFailed) as error:
        tell(error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
