"""What the audit makes of licences and exceptions."""

from __future__ import annotations

import pytest

from deploy.audit.audit import HERE, entries, is_allowed


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


def test_every_exception_says_why() -> None:
    assert all(entries(HERE / "vulnerabilities.txt").values())
