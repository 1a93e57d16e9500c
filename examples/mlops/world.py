"""The world that the loop's model lives in: digits as they were, and digits as they become.

Nobody whose digits a version learnt from comes back later, and those whose digits it is judged by are others again: so
the images are in three groups. Each time that one is drawn it looks a little different.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from examples.digits import train
from examples.digits.train import Floats, Integers

PIXEL_MAX = train.PIXEL_MAX


class Group(enum.Enum):
    """Who writes."""

    FIRST = slice(0, 800)
    """Those whose digits the first version learns from."""
    CALLERS = slice(800, 1300)
    """Those who call until there is enough to learn from."""
    NEWCOMERS = slice(1300, 1797)
    """Those who call then: nothing that was trained has seen a digit of theirs."""


class Style(enum.Enum):
    """How a digit looks."""

    CLEAN = "as it was"
    ROTATED = "rotated"
    NOISY = "noisy"
    INVERTED = "a new style"


CHANGED = (Style.ROTATED, Style.NOISY, Style.INVERTED)


@dataclass(frozen=True, slots=True)
class World:
    """Draws images [1,8,8] with pixels 0 to 16, and their labels. The same seed draws the same ones."""

    images: Floats
    labels: Integers

    @classmethod
    def make(cls) -> World:
        split = train.load_split()
        images = np.concatenate([split.images, split.held_out_images])
        labels = np.concatenate([split.labels, split.held_out_labels])
        mixed = np.random.default_rng(9).permutation(len(labels))
        return cls(images[mixed], labels[mixed])

    def draw(self, group: Group, style: Style, random: np.random.Generator) -> tuple[Floats, int]:
        """One image by someone of the group, and what it shows."""
        index = int(random.integers(group.value.start, group.value.stop))
        return render(self.images[index, 0], style, random), int(self.labels[index])

    def draw_many(
        self, group: Group, styles: tuple[Style, ...], rows: int, random: np.random.Generator
    ) -> tuple[Floats, Integers]:
        """Images [rows,1,8,8] of styles that take turns by chance."""
        drawn = [self.draw(group, styles[int(random.integers(len(styles)))], random) for _ in range(rows)]
        return np.stack([image for image, _ in drawn]), np.array([label for _, label in drawn], np.int64)


def render(image: Floats, style: Style, random: np.random.Generator) -> Floats:
    """An image [8,8] as somebody writes it this time: [1,8,8]."""
    angle = random.normal(0, 4)
    if style is Style.ROTATED:
        angle += random.uniform(35, 55)
    seen = ndimage.rotate(image, angle, reshape=False, order=1)
    seen = seen + random.normal(0, 4.0 if style is Style.NOISY else 0.3, seen.shape)
    if style is Style.INVERTED:
        seen = PIXEL_MAX - seen
    return np.clip(seen, 0, PIXEL_MAX).astype(np.float32)[np.newaxis]
