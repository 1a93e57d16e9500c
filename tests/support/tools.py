"""Programs and libraries that some tests run: found, or the test says what installs them.

Without the program a test fails in CI, so that nothing is ever left out there; elsewhere it is skipped, with the reason
in the summary, so that `make test` needs nothing but Python.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final, NoReturn

import pytest

FOLDER: Final = Path(__file__).resolve().parents[2] / ".tools" / "bin"


def program(name: str, remedy: str = "`make conformance` builds it (needs Go)") -> str:
    """The path of a program, from .tools or PATH."""
    found = shutil.which(name, path=f"{FOLDER}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is not None:
        return found
    return missing(f"{name} is missing: {remedy}")


def missing(reason: str) -> NoReturn:
    """End the test for what it lacks."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def library(name: str, remedy: str) -> str:
    """The path of a shared library that programs are started with."""
    folders = [Path(part) for part in os.environ.get("KAIROS_TEST_LIBRARIES", "").split(os.pathsep) if part]
    for folder in (*folders, Path("/usr/lib"), Path("/usr/local/lib")):
        if (found := next(folder.rglob(name), None)) is not None:
            return str(found)
    return missing(f"{name} is missing: {remedy}")
