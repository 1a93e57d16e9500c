"""Draws the story of the loop: what callers saw, what the watch saw, and who answered."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from examples.mlops.story import Story
from examples.mlops.world import CHANGED, Group, Style, World

OLD, NEW, RED, INK, PALE = "#4c6a92", "#2a9d6f", "#d1495b", "#22303c", "#8a97a3"
BIN_S: Final = 1.0
HALF: Final = 0.5
LABEL_SHARE: Final = 0.028
"""Between two labels, of the width."""
LEAST: Final = 20
"""Answers that a point of accuracy is made of, at least."""


def draw(story: Story, world: World, path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle("A model, a changed world, and the next version", fontsize=15, color=INK, fontweight="bold")
    digits, below = figure.subfigures(2, 1, height_ratios=[1, 6])
    _digits(digits, world)
    accuracy, drift, share = below.subplots(3, 1, sharex=True, height_ratios=[3, 2.4, 1.6])
    _accuracy(accuracy, story)
    _drift(drift, story)
    _share(share, story)
    for axes in (accuracy, drift, share):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6eaee")
        axes.set_axisbelow(True)
        for at, _ in _shown(story):
            axes.axvline(at - story.began, color=PALE, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    share.set_xlabel("seconds")
    end = story.answers[-1].at - story.began
    share.set_xlim(0, end)
    _marks(accuracy, story, end)
    figure.savefig(path, dpi=120)


def _digits(figure: Any, world: World) -> None:  # noqa: ANN401  (matplotlib's classes by duck)
    """Some digits as they were, and as they became."""
    random = np.random.default_rng(3)
    styles = (*(Style.CLEAN,) * 4, *(style for style in CHANGED for _ in range(3)))
    row = figure.subplots(1, len(styles), gridspec_kw={"wspace": 0.06})
    for place, (axes, style) in enumerate(zip(row, styles, strict=True)):
        image, _ = world.draw(Group.CALLERS, style, random)
        axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=16)
        axes.set(xticks=[], yticks=[])
        colour = OLD if style is Style.CLEAN else RED
        for spine in axes.spines.values():
            spine.set_color(colour)
        if place in (0, 4, 7, 10):
            axes.set_title(style.value, loc="left", fontsize=9, color=colour)


def _accuracy(axes: Any, story: Story) -> None:  # noqa: ANN401
    for version, colour in (("1", OLD), ("2", NEW)):
        mine = [answer for answer in story.answers if answer.version == version]
        times = np.array([answer.at - story.began for answer in mine])
        right = np.array([answer.right for answer in mine], float)
        bins = np.floor(times / BIN_S).astype(int)
        points = [(each, right[bins == each]) for each in np.unique(bins)]
        points = [(each, values) for each, values in points if len(values) >= LEAST]
        x = [(each + 0.5) * BIN_S for each, _ in points]
        axes.plot(x, [values.mean() for _, values in points], color=colour, linewidth=2, label=f"version {version}")
    axes.set(ylim=(0, 1.02), ylabel="accuracy,\nby the outcomes")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(loc="lower left", frameon=False)


def _drift(axes: Any, story: Story) -> None:  # noqa: ANN401
    for version, colour in (("1", OLD), ("2", NEW)):
        seen = [(sight.at - story.began, sight.drift[version]) for sight in story.sights if version in sight.drift]
        axes.plot(*zip(*seen, strict=True), color=colour, linewidth=2) if seen else None
    top = axes.get_ylim()[1]
    for sight, following in pairwise(story.sights):
        if "drift" in sight.alarms.get("2" if sight.share > HALF else "1", ()):
            span = (sight.at - story.began, following.at - story.began)
            axes.axvspan(*span, color=RED, alpha=0.12, linewidth=0)
    axes.axhline(0.2, color=RED, linewidth=0.8, linestyle="--")
    axes.annotate(
        "alarm of the version that most callers get", (0.4, 0.35), xycoords="axes fraction", ha="center", color=RED
    )
    axes.set(ylim=(0, top), ylabel="drift of the inputs\n(PSI)")


def _share(axes: Any, story: Story) -> None:  # noqa: ANN401
    times = np.array([answer.at - story.began for answer in story.answers])
    new = np.array([answer.version == "2" for answer in story.answers], float)
    bins = np.floor(times / BIN_S).astype(int)
    found = np.unique(bins)
    share = [new[bins == each].mean() for each in found]
    axes.fill_between((found + 0.5) * BIN_S, share, color=NEW, alpha=0.3, linewidth=0)
    axes.plot((found + 0.5) * BIN_S, share, color=NEW, linewidth=2)
    axes.set(ylim=(0, 1.02), ylabel="answered by\nversion 2")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _marks(axes: Any, story: Story, end: float) -> None:  # noqa: ANN401
    """The steps, named above the first plot; those that are close to each other move apart."""
    gap = end * LABEL_SHARE
    last = -gap
    for at, name in _shown(story):
        place = max(at - story.began, last + gap)
        last = place
        line = {"arrowstyle": "-", "color": PALE, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            name, (at - story.began, 1.0), xycoords=("data", "axes fraction"), xytext=(place, 1.1),
            textcoords=("data", "axes fraction"), arrowprops=line, rotation=30, rotation_mode="anchor", va="bottom",
            fontsize=9, color=INK,
        )  # fmt: skip


def _shown(story: Story) -> list[tuple[float, str]]:
    """Steps since the first answer."""
    return [(at, name) for at, name in story.marks if at >= story.began]
