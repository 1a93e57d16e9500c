"""What the audit makes of licences, of advisories and of exceptions."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deploy.audit import audit
from deploy.audit.advisories import vulnerable
from deploy.audit.audit import HERE, LOCK, entries, is_allowed, pins, refused


@pytest.mark.parametrize(
    ("licence", "verdict"),
    [
        ("MIT", True),
        ("GPL-3.0", False),
        ("GPL-3.0 OR MIT", True),
        ("GPL-3.0 AND MIT", False),
        ("MIT AND (GPL-3.0 OR BSD-3-Clause)", True),
        ("MIT License; GNU General Public License v3 (GPLv3)", False),
        ("MIT License\n\nPermission is hereby granted", True),
        ("Mozilla Public License 2.0 (MPL 2.0)", True),
        ("UNKNOWN", False),
    ],
)
def test_licences(licence: str, verdict: bool) -> None:
    assert (
        is_allowed(licence, {"MIT", "MIT License", "BSD-3-Clause", "Mozilla Public License 2.0 (MPL 2.0)"}) is verdict
    )


def test_a_package_that_nothing_is_known_of_is_not_allowed() -> None:
    assert refused({"a": "MIT", "b": "GPL-3.0\nAll of it", "d": ""}, {"a", "b", "c", "d"}, {"MIT"}) == [
        "c: nothing is known of its licence",
        "b: GPL-3.0",
        "d: no licence",
    ]


def test_every_exception_says_why() -> None:
    assert all(entries(HERE / "vulnerabilities.txt").values())
    named = entries(HERE / "licences.txt")
    assert all(why for name, why in named.items() if name in pins(LOCK.read_text()))


def test_the_lock_is_read_whole() -> None:
    text = LOCK.read_text()
    found = pins(text)
    assert {"grpcio", "onnxruntime", "tensorrt"} <= found.keys()
    assert set(re.findall(r"(?m)^([\w.-]+)==\S+ \\$", text)) <= found.keys(), "those without a condition"
    assert "cffi" in found, "whose condition holds"
    assert pins("a==1 ; sys_platform == 'nowhere' \\\n    --hash=sha256:0\nb==2 ; sys_platform != 'nowhere'") == {
        "b": ("2", "b==2 ; sys_platform != 'nowhere'")
    }
    for version, entry in found.values():
        assert f"=={version}" in entry
        assert "--hash=sha256:" in entry
    assert sum(entry.count("--hash") for _, entry in found.values()) > 0.9 * text.count("--hash")


def advisory(*ranges: dict[str, str], versions: tuple[str, ...] = (), **rest: Any) -> dict[str, Any]:
    """Of a package called Some.Thing."""
    affected = {
        "package": {"ecosystem": "PyPI", "name": "Some.Thing"},
        "ranges": [{"type": "ECOSYSTEM", "events": list(ranges)}] if ranges else [],
        "versions": list(versions),
    }
    return {"id": "PYSEC-1", "aliases": ["CVE-1"], "modified": "2026-01-02", "affected": [affected], **rest}


@pytest.fixture(params=["folder", "zip"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Keeps advisories as a copy of the database."""

    def keep(*advisories: dict[str, Any]) -> Path:
        if request.param == "zip":
            with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
                for number, each in enumerate(advisories):
                    packed.writestr(f"{number}.json", json.dumps(each))
            return tmp_path / "all.zip"
        for number, each in enumerate(advisories):
            (tmp_path / f"{number}.json").write_text(json.dumps(each))
        return tmp_path

    return keep


@pytest.mark.parametrize(
    ("found", "hit"),
    [
        (advisory({"introduced": "0"}), True),
        (advisory({"introduced": "0"}, {"fixed": "1.10.0"}), True),
        (advisory({"introduced": "0"}, {"fixed": "1.9.0"}), False),
        (advisory({"introduced": "1.9.1"}), False),
        (advisory({"introduced": "0"}, {"last_affected": "1.9.0"}), True),
        (advisory({"introduced": "0"}, {"last_affected": "1.8.9"}), False),
        (advisory({"introduced": "0"}, {"fixed": "1.1"}, {"introduced": "1.8"}, {"fixed": "2"}), True),
        (advisory({"introduced": "nonsense"}), True),
        (advisory(versions=("1.9.0",)), True),
        (advisory(versions=("1.9.1",)), False),
        (advisory({"introduced": "0"}, withdrawn="2026-01-01"), False),
    ],
)
def test_advisories(kept: Any, found: dict[str, Any], hit: bool) -> None:
    told = vulnerable(kept(found), {"some-thing": "1.9.0", "other": "1"}, ())
    assert told.findings == (["some-thing 1.9.0: CVE-1, PYSEC-1"] if hit else [])


def test_what_is_explained_is_no_finding(kept: Any) -> None:
    copy = kept(advisory({"introduced": "0"}))
    assert vulnerable(copy, {"some-thing": "1"}, {"CVE-1"}).findings == []
    assert vulnerable(copy, {"some-thing": "1"}, {"CVE-2"}).findings


def test_silence_is_no_answer(
    kept: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "licences", lambda folder: [])
    elsewhere = advisory({"introduced": "0"})
    elsewhere["affected"][0]["package"]["ecosystem"] = "npm"
    monkeypatch.setattr(sys, "argv", ["audit.py", str(tmp_path), str(kept(elsewhere))])
    with pytest.raises(SystemExit):
        audit.main()
    assert "no advisories for PyPI there" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["audit.py", str(tmp_path), str(kept(elsewhere, advisory({"introduced": "9"})))])
    audit.main()
    assert "1 advisories for PyPI, the newest of 2026-01-02" in capsys.readouterr().out


def test_what_cannot_be_looked_up_fails_the_audit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "tools" / "bin" / "pip-audit"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\necho 'not to be reached' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setattr(audit, "licences", lambda folder: [])
    monkeypatch.setattr(sys, "argv", ["audit.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        audit.main()
    assert "not to be looked up" in capsys.readouterr().out
