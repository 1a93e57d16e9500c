"""Carries out the target `cpu` of the Dockerfile in chroots, and serves from it: for machines without a Docker engine.

    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm BASE
    python3 deploy/docker/prove.py BASE

Needs root. Each stage starts as a copy of BASE, which stands for the Python image, and runs the instructions of the
file as they are. The image's command then runs as its user on a read-only root with its writable folders in memory, is
asked by its own health check until that succeeds, and must leave with 0 on SIGTERM.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
SHARED = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
"""What a container engine would give: names, and whom this machine trusts."""


@dataclass
class Stage:
    """What the instructions so far have made."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"})
    folder: str = "/"
    user: str = "0:0"
    words: dict[str, list[str]] = field(default_factory=dict)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Keyword and argument of each instruction; those before the first FROM included."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            keyword, _, argument = line.partition(" ")
            yield keyword, argument.strip()


def build(base: Path, work: Path, target: str) -> Stage:
    """All stages up to the target, each in a folder of its own."""
    stages: dict[str, Stage] = {}
    name = ""
    for keyword, argument in instructions((REPOSITORY / "Dockerfile").read_text()):
        if keyword == "FROM":
            if name == target:
                break
            name = argument.split()[-1]
            stages[name] = Stage(work / name)
            subprocess.run(["cp", "-a", base, stages[name].root], check=True)
            for file in SHARED:
                shutil.copyfile(file, stages[name].root / file.lstrip("/"))
        elif name:
            print(f"[{name}] {keyword} {argument}", flush=True)
            apply(stages, stages[name], keyword, argument)
    return stages[target]


def apply(stages: dict[str, Stage], stage: Stage, keyword: str, argument: str) -> None:
    """One instruction. Those that only describe the image change nothing."""
    if keyword == "RUN":
        passed = {key: value for key, value in os.environ.items() if key in {"PIP_INDEX_URL", "PIP_CERT"}}
        inside = f"cd {shlex.quote(stage.folder)} && {argument}"
        subprocess.run(["chroot", stage.root, "/bin/sh", "-c", inside], env=stage.env | passed, check=True)
    elif keyword == "COPY":
        copy(stages, stage, argument.split())
    elif keyword == "ENV":
        stage.env |= dict(pair.split("=", 1) for pair in shlex.split(argument))
    elif keyword == "WORKDIR":
        stage.folder = argument
        (stage.root / argument.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif keyword == "USER":
        stage.user = argument
    elif keyword in {"ENTRYPOINT", "CMD", "HEALTHCHECK"}:
        stage.words[keyword] = json.loads(argument[argument.index("[") :])


def copy(stages: dict[str, Stage], stage: Stage, words: list[str]) -> None:
    """COPY from the repository or another stage."""
    origin = REPOSITORY
    if words[0].startswith("--from="):
        origin = stages[words.pop(0).removeprefix("--from=")].root
    *sources, target = words
    into = stage.root / (Path(stage.folder) / target).as_posix().lstrip("/")
    for source in sources:
        path = origin / source.lstrip("/")
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__") if origin is REPOSITORY else None
            shutil.copytree(path, into, dirs_exist_ok=True, symlinks=True, ignore=ignored)
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, into)


def serve(stage: Stage) -> None:
    """Run what the image runs, on a read-only root, and ask it what the image's health check asks."""
    shutil.copytree(REPOSITORY / "examples" / "models", stage.root / "models", dirs_exist_ok=True)
    writable = [stage.env["KAIROS_CACHE_DIR"], stage.env["KAIROS_STATE_DIR"], "/tmp"]
    uid, gid = stage.user.split(":")
    mounts = [f'mount --bind "{stage.root}" "{stage.root}"', f'mount -o remount,bind,ro "{stage.root}"']
    mounts += [f'mount -t tmpfs -o uid={uid},gid={gid} none "{stage.root}{folder}"' for folder in writable]
    mounts += [f'mount -t proc proc "{stage.root}/proc"', f'mount --bind /dev "{stage.root}/dev"']
    inside = [shutil.which("chroot") or "chroot", f"--userspec={stage.user}", str(stage.root)]
    command = [*inside, *stage.words["ENTRYPOINT"], *stage.words["CMD"]]
    script = "\n".join(["set -e", *mounts, f"exec {shlex.join(command)}"])
    environment = stage.env | {"KAIROS_HOST": "127.0.0.1"}
    server = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], env=environment)
    try:
        there = ["nsenter", "--mount", f"--target={server.pid}", *inside]
        ask_until_healthy(server, [*there, *stage.words["HEALTHCHECK"]], stage.env)
        subprocess.run([*there, "kairos", "models"], env=stage.env, check=True)
        touched = subprocess.run([*there, "touch", "/opt/kairos/mark"], env=stage.env, check=False)
        assert touched.returncode, "the root can be written to"
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert re.search(rf"^Uid:\s+{uid}\s", status, re.MULTILINE), status
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_S) == 0, "it left with another status than 0"
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def ask_until_healthy(server: subprocess.Popen[bytes], check: list[str], env: dict[str, str]) -> None:
    """Return once the check succeeds."""
    until = time.monotonic() + PATIENCE_S
    while subprocess.run(check, env=env, check=False).returncode:
        assert server.poll() is None, "the server left"
        assert time.monotonic() < until, f"not healthy within {PATIENCE_S} s"
        time.sleep(0.5)


def main() -> None:
    """Build and serve the target `cpu`."""
    with tempfile.TemporaryDirectory(prefix="kairos-image-") as work:
        stage = build(Path(sys.argv[1]).resolve(), Path(work), "cpu")
        size = subprocess.run(
            ["du", "-sm", stage.root / "opt" / "kairos"], capture_output=True, text=True, check=True
        ).stdout.split()[0]
        print(f"/opt/kairos: {size} MiB", flush=True)
        serve(stage)
    print("proven")


if __name__ == "__main__":
    main()
