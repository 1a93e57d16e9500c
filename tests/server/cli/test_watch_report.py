"""The report of the watch, from a server's answer."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from server.cli.watch_report import write_report
from server.pb import watch_pb2 as pb


def watched(*, columns: int = 2) -> pb.WatchedModel:
    model = pb.WatchedModel(name="<m>", version="1", state="watching", note="a & b", alarm_p_value=0.01)
    for step in range(5):
        readings = [pb.WatchReading(signal=signal, value=step, p_value=0.1**step, alarm=step > 3) for signal in "ab"]
        model.history.append(pb.WatchLook(at=1000.0 + 60 * step, readings=readings))
    model.readings.extend([*readings, pb.WatchReading(signal="volume", value=3, p_value=float("nan"))])
    for index in range(columns):
        column = model.columns.add(name=f"c{index}", answer=index == 0, p_value=0.0, psi=1.0, missing=0.5)
        column.reference.extend([0.5, 0.5])
        column.window.extend([0.1, 0.4])
        if index == 1:
            column.categories.extend(["yes", "no"])
        else:
            column.edges.extend([0.0, 1.0, 2.0])
    return model


@pytest.mark.parametrize("columns", [0, 1, 2, 60])
def test_a_page_is_drawn(tmp_path: Path, columns: int) -> None:
    write_report([watched(columns=columns), pb.WatchedModel(name="blind", state="blind")], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "&lt;m&gt; version 1" in page
    assert "<m>" not in page
    assert page.count("<svg") == (columns > 0)
    assert page.count('<td class="alarm">alarm</td>') == 2
    assert "<td>volume</td><td>3.000</td><td></td>" in page
    if columns:
        picture = page[page.index("<svg") : page.index("</svg>") + 6]
        ET.fromstring(picture)


@pytest.mark.parametrize(
    "models", [[watched()], [watched(columns=5), watched()], [pb.WatchedModel(name="blind", alarm_p_value=0.01)]]
)
def test_a_picture_is_drawn(tmp_path: Path, models: list[pb.WatchedModel]) -> None:
    write_report(models, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"kairos\[plots\]"):
        write_report([watched()], tmp_path / "r.html")
