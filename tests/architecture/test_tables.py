"""The tables of faults and attacks name tests; each of these exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
TESTS: Final = tuple(path for path in (ROOT / "tests").rglob("*") if "__pycache__" not in path.parts)
NICKNAMES: Final = {
    "access": "tests/conformance/test_access.py",
    "resources": "tests/conformance/test_resources.py",
    "hostile": "tests/server/transport/http2/test_hostile.py",
    "server": "tests/server/transport/http2/test_server.py",
}
"""As the checklist explains them."""


def rows(page: str, section: str) -> Iterator[tuple[str, str]]:
    """First and last cell of each row of the first table in a section."""
    text = (ROOT / "docs" / page).read_text().split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    for line in re.findall(r"(?m)^\| .* \|$", text)[1:]:
        first, *_, last = re.split(r"(?<!\\)\|", line.strip("|"))
        yield first.strip(), last.strip()


def resolve(name: str) -> Path:
    """The file or folder of that name; a name without `tests/` may be any end of a path that only one has."""
    if name.startswith("tests/"):
        found = [ROOT / name]
    else:
        found = [path for path in TESTS if path.as_posix().endswith(f"/{name}")]
    assert len(found) == 1, f"{name}: {found}"
    assert found[0].exists(), name
    return found[0]


def functions_of(path: Path) -> set[str]:
    """Names of the test functions in a file, or in a folder's files."""
    files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
    return {name for file in files for name in re.findall(r"(?m)^(?:async )?def (test_\w+)", file.read_text())}


def named(cell: str) -> Iterator[tuple[Path, str]]:
    """Files and, where it says so, parts of the names of tests in them; an empty part stands for any test."""
    for part in cell.split(";"):
        nickname, colon, names = part.strip().partition(":")
        if nickname in NICKNAMES and colon:
            yield from ((resolve(NICKNAMES[nickname]), name) for name in re.findall(r"`(\w+)`", names))
        else:
            yield from ((resolve(name.strip(" `")), "") for name in part.split(","))


def missing(cell: str) -> list[str]:
    """What the cell names and nobody has."""
    return [f"{path}: {name}" for path, name in named(cell) if not any(name in test for test in functions_of(path))]


FAULTS: Final = tuple(rows("reliability.md", "Faults"))
ATTACKS: Final = tuple(rows("security.md", "The attacker's checklist"))


def test_the_tables_are_found() -> None:
    assert len(FAULTS) > 15
    assert len(ATTACKS) > 18


@pytest.mark.parametrize(("fault", "cell"), FAULTS, ids=[fault for fault, _ in FAULTS])
def test_every_fault_has_its_test(fault: str, cell: str) -> None:
    assert list(named(cell))
    assert not missing(cell)


@pytest.mark.parametrize(("attack", "cell"), ATTACKS, ids=range(len(ATTACKS)))
def test_every_attack_has_its_test(attack: str, cell: str) -> None:
    assert list(named(cell))
    assert not missing(cell)


def test_what_is_missing_is_noticed() -> None:
    assert missing("access: `without_a_credential`, `nobody_wrote_this`") == [
        f"{ROOT / NICKNAMES['access']}: nobody_wrote_this"
    ]
    with pytest.raises(AssertionError, match="test_nowhere"):
        missing("`tests/integration/test_nowhere.py`")
    with pytest.raises(AssertionError, match=r"test_service\.py"):
        missing("tests/engines/test_service.py")
