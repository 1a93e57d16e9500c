from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.marks import put
from loadtest.sizing.cli import FIGURES
from loadtest.sizing.page import PAGE, limits, tables, worksheet, wrapped, write
from loadtest.sizing.study import Price, Study
from tests.loadtest.sizing import figures

EMPTY = "".join(
    f"before {name}\n<!-- sizing {name} -->\nstale\n<!-- /sizing {name} -->\n"
    for name in ("worksheet", "figures", "limits")
)


def test_the_page_keeps_what_is_around_the_marks(tmp_path: Path) -> None:
    page, image = tmp_path / "page.md", tmp_path / "sizing.png"
    page.write_text(EMPTY)
    write(figures.study(), page, image)
    text = page.read_text()
    assert "stale" not in text
    assert text.startswith("before worksheet\n<!-- sizing worksheet -->\n| coefficient | measured |")
    for name in ("worksheet", "figures", "limits"):
        assert put(text, f"sizing {name}", "stale").count("stale") == 1
    assert image.read_bytes().startswith(b"\x89PNG")


def test_a_page_without_marks_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no marks"):
        write(figures.study(), page, tmp_path / "sizing.png")
    assert page.read_text() == "no marks"


def test_figures_that_the_generator_limited_are_marked() -> None:
    slow = [load for load in figures.study().loads if load.part != "callers"]
    loads = [*slow, *figures.callers((1, 8)), figures.load("callers", 64, rows_per_batch=64.0, faults=["slip"])]
    lines = tables(figures.study(loads=loads))
    assert any(line.startswith("| 64 | 1,000 (!) |") for line in lines)
    assert any(line.startswith("| 8 | 1,000 |") for line in lines)


def test_the_formulas_are_in_the_text_and_the_tables() -> None:
    lines = tables(figures.study())
    assert any("**60.0 us + 400 us / k**, within 0% of each line" in line for line in lines)
    assert any("**120 us + 1.50 us for each KiB**" in line for line in lines)
    assert any("| TLS, small requests | 200 | **1.20** | 1.10 to 1.30 | 3 |" in line for line in lines)


def test_the_coefficients_are_told() -> None:
    lines = worksheet(figures.study())
    assert any(line.endswith("| 72 us |") for line in lines), "60 + 400 / 32"
    assert any(line.endswith("| 6 KiB; 50 KiB |") for line in lines)


@pytest.mark.parametrize(
    ("shared_us", "told"),
    [
        ((120.0, 120.0, 120.0), "from 64 KiB on"),
        ((10.0, 500.0, 120.0), "from 4096 KiB on"),
        ((10.0, 10.0, 1e6), "less than a fifth"),
    ],
)
def test_shared_memory_pays_from_where_it_always_does(shared_us: tuple[float, ...], told: str) -> None:
    loads = [load for load in figures.study().loads if load.name != "shared"]
    loads += [
        figures.load("payload", kib, name="shared", cpu_us=us)
        for kib, us in zip((0.25, 64, 4096), shared_us, strict=True)
    ]
    assert any(told in line for line in limits(figures.study(loads=loads)))


def test_prose_is_wrapped_and_tables_are_not() -> None:
    prose = wrapped("- " + "word " * 60)
    assert max(map(len, prose.splitlines())) <= 120
    assert all(line.startswith("  ") for line in prose.splitlines()[1:])
    row = f"| {'wide ' * 60}|"
    assert wrapped(row) == row


def test_the_price_is_never_less_than_nothing() -> None:
    assert Price(name="noise", without_us=100.0, ratios=[0.9]).extra_us == 0.0


def test_the_published_page_is_that_of_the_published_figures(tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    write(Study.of(json.loads(FIGURES.read_text())), copy, tmp_path / "sizing.png")
    assert copy.read_text() == PAGE.read_text()
