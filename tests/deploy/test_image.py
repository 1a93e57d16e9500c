"""The Dockerfile and the locks that it installs from."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.tools import program

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
TEXT = (ROOT / "Dockerfile").read_text()
LOCKS = sorted(DOCKER.glob("*.lock"))


def pins(path: Path) -> dict[str, str]:
    """Versions by package; a line that pins none is no pin."""
    return {
        canonicalize_name(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", path.read_text())
    }


def target(name: str) -> str:
    """The instructions of one stage."""
    return next(stage for stage in re.split(r"(?m)^FROM ", TEXT) if stage.split("\n")[0].endswith(f" AS {name}"))


def test_hadolint_finds_no_fault() -> None:
    beside = str(Path(sys.executable).with_name("hadolint"))
    hadolint = beside if Path(beside).exists() else program("hadolint", "`make install` has it where there is a wheel")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_an_image_runs_as_nobody_and_says_what_it_is(name: str) -> None:
    stage = target(name)
    assert re.search(r"(?m)^USER 10001:10001$", stage)
    assert 'CMD ["kairos", "health"]' in stage
    assert "PYTHONSAFEPATH=1" in stage
    for label in ("title", "description", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in stage


def test_bases_are_arguments() -> None:
    bases = set(re.findall(r"(?m)^FROM (\S+)", TEXT))
    assert {base for base in bases if "$" in base} == {"${PYTHON_IMAGE}", "${CUDA_IMAGE}"}
    assert {base for base in bases if "$" not in base} == {"gpu-base"}  # a stage of the file


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_pin_has_hashes(lock: Path) -> None:
    entries = re.split(r"(?m)^(?=\S)", lock.read_text())[1:]
    assert entries
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize(("lock", "extras"), [("requirements", ["sources"]), ("requirements-gpu", ["sources", "gpu"])])
def test_locks_have_what_kairos_needs_at_the_versions_of_the_constraints(lock: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked, constrained = pins(DOCKER / f"{lock}.lock"), pins(ROOT / "constraints.txt")
    wanted = [*project["dependencies"]]
    while extras:
        for text in project["optional-dependencies"][extras.pop()]:
            needed = Requirement(text)
            if needed.name == "kairos":
                extras = [*extras, *needed.extras]
            else:
                wanted.append(text)
    missing = [text for text in wanted if canonicalize_name(Requirement(text).name) not in locked]
    assert not missing, "run `make hashes`"
    other = {name for name in locked.keys() & constrained.keys() if locked[name] != constrained[name]}
    assert not other, "run `make hashes`"


def test_what_the_image_copies_is_not_ignored() -> None:
    kept = re.findall(r"(?m)^!(\S+)$", (ROOT / ".dockerignore").read_text())
    for sources in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", TEXT):
        for source in sources.split():
            assert any(Path(source).match(pattern) for pattern in kept), source
            assert (ROOT / source).exists()
