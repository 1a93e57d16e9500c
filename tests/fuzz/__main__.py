"""`python -m tests.fuzz TARGET ...`: fuzz for a while, and say what was found.

With atheris (the `fuzz` extra) inputs are chosen by the code they reach; without it they are mutations of the kept
corpus, and no more than that. A finding ends the target with status 1, its input kept under build/fuzz.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.fuzz.targets import NAMES

BUILD: Final = Path("build/fuzz")
_SLOW_S: Final = 10
"""An input that takes longer is a finding: a caller could send it all day."""
_MEMORY_MB: Final = 3000
_LONGEST_BYTES: Final = 1 << 15


def _tools() -> tuple[Any, Any, Any]:
    """What imports the code under test: atheris must be there first."""
    from tests.fuzz.corpus import kept, name_of  # noqa: PLC0415
    from tests.fuzz.targets import find  # noqa: PLC0415

    return find, kept, name_of


def blind(name: str, seconds: float, seed: int) -> int:
    """Mutate without a guide. Returns the executions; raises at the first finding."""
    find, kept, name_of = _tools()
    target = find(name)
    corpus = kept(target)
    random = Random(seed)
    until = time.monotonic() + seconds
    runs = 0
    while time.monotonic() < until:
        data = target.mutate(random.choice(corpus), random)
        started = time.monotonic()
        try:
            target.run(data)
            assert time.monotonic() - started < _SLOW_S, f"an input took {time.monotonic() - started:.1f} s"
        except BaseException:
            path = BUILD / name / f"finding-{name_of(data)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"{name}: finding after {runs} runs, kept as {path}", file=sys.stderr)
            raise
        runs += 1
    target.close()
    return runs


def guided(name: str, seconds: int, seed: int) -> None:
    """Let atheris choose. Never returns: the process ends with libFuzzer's status."""
    import atheris  # noqa: PLC0415 - optional, and it patches the interpreter

    with atheris.instrument_imports(include=["engines", "server"]):
        find, kept, name_of = _tools()
        target = find(name)
    work = BUILD / name
    work.mkdir(parents=True, exist_ok=True)
    for data in kept(target):
        (work / name_of(data)).write_bytes(data)

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        random = Random(number)
        if random.random() < 0.4:
            return bytes(atheris.Mutate(data, max_size))
        return target.mutate(data, random)[:max_size]

    arguments = [
        sys.argv[0], f"-max_total_time={seconds}", f"-timeout={_SLOW_S}", f"-rss_limit_mb={_MEMORY_MB}",
        f"-max_len={_LONGEST_BYTES}", f"-seed={seed}", f"-artifact_prefix={work}/finding-", "-print_final_stats=1",
        str(work),
    ]  # fmt: skip
    atheris.Setup(arguments, target.run, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Each target in a process of its own, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[[], *NAMES], metavar="TARGET", help=f"of: {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blind", action="store_true", help="without atheris")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the one target, in this process
    given = parser.parse_args()
    names = given.targets or NAMES
    unguided = given.blind or importlib.util.find_spec("atheris") is None
    if given.here:
        if unguided:
            print(f"{names[0]}: {blind(names[0], given.seconds, given.seed)} runs, nothing found")
        else:
            guided(names[0], given.seconds, given.seed)
        return
    failed = []
    for name in names:
        print(f"{name}: {given.seconds} s, {'mutations only' if unguided else 'guided by coverage'}", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", name, "--here", f"--seconds={given.seconds}"]
        command += [f"--seed={given.seed}", *(["--blind"] if unguided else [])]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"findings in: {', '.join(failed)}" if failed else "nothing found")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
