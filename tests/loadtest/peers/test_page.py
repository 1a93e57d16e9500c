from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.peers.cells import Cell
from loadtest.peers.page import Study, losses, section, summary, write


def cell(peer: str, **fields: Any) -> Cell:
    base = {
        "model": "mlp", "round": 0, "asked_per_s": 100.0, "answers_per_s": 100.0, "good_per_s": 100.0, "p50_ms": 1.0,
        "p99_ms": 2.0, "cpu_us": 50.0, "codes": {"OK": 1}, "faults": [],
    }  # fmt: skip
    return Cell(peer=peer, **{**base, **fields})


def study(*cells: Cell) -> Study:
    return Study(
        machine="a machine", command="python -m loadtest.peers", at="2026-01-01", minutes=3.0,
        versions={"kairos": ["grpcio 1"]}, threads=1, limits={"mlp": {1: (1000.0, 5.0), 64: (9000.0, 1.0)}},
        deadlines={"mlp": ["25", "50", "100"]}, cells=cells,
    )  # fmt: skip


BOTH = study(
    cell("kairos", callers=64, answers_per_s=1000.0, round=0),
    cell("kairos", callers=64, answers_per_s=1200.0, round=1),
    cell("triton", callers=64, answers_per_s=800.0, round=0, faults=["slip"]),
    cell("triton", callers=64, answers_per_s=800.0, round=1),
    cell("kairos", load=1.5, good_per_s=90.0, capacity=100.0),
    cell("triton", load=1.5, good_per_s=30.0, capacity=40.0),
)


def test_medians_have_their_spread_and_the_best_is_bold() -> None:
    lines = section(BOTH)
    assert any(line.startswith("| kairos | **1,100** ±9%") for line in lines)
    assert any(line.startswith("| triton | 800 (!)") for line in lines), "what is invalid is marked"
    assert any("| triton | 30.0 | 0.75 |" in line for line in lines)


def test_where_a_peer_is_ahead_is_said() -> None:
    assert losses(BOTH) == []
    ahead = study(cell("kairos", callers=8, cpu_us=100.0), cell("triton", callers=8, cpu_us=50.0))
    assert losses(ahead) == ["triton, mlp, 8 callers: CPU us: 2.00 times as good"]
    within_the_noise = study(
        cell("kairos", callers=8, answers_per_s=100.0),
        cell("triton", callers=8, answers_per_s=90.0, round=0),
        cell("triton", callers=8, answers_per_s=140.0, round=1),
    )
    assert losses(within_the_noise) == []


def test_the_summary_has_one_line_for_each_server() -> None:
    rows = [line for line in summary(BOTH) if line.startswith(("| **kairos", "| triton"))]
    assert rows == [
        "| **kairos** | 1,100 | 50.0 us | 90.0/s, 90% of it |",
        "| triton | 800 | 50.0 us | 30.0/s, 75% of it |",
    ]


def test_a_study_survives_json() -> None:
    assert Study.of(json.loads(json.dumps(dataclasses.asdict(BOTH)))) == dataclasses.replace(
        BOTH, cells=list(BOTH.cells)
    )


def test_the_page_keeps_what_is_around_the_marks(tmp_path: Path) -> None:
    page, image = tmp_path / "page.md", tmp_path / "peers.png"
    page.write_text(
        "top\n<!-- peers summary -->\nstale figures\n<!-- /peers summary -->\nmid\n"
        "<!-- peers -->\n<!-- /peers -->\nend\n"
    )
    write(BOTH, page, image)
    text = page.read_text()
    assert text.startswith("top\n<!-- peers summary -->\n![")
    assert text.endswith("<!-- /peers -->\nend\n")
    assert "stale figures" not in text
    assert "\nmid\n" in text
    assert image.read_bytes().startswith(b"\x89PNG")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no marks"):
        write(BOTH, page, image)
