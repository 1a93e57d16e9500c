"""Trains the versions of the loop's model, and makes its data of what the server captured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from examples.digits import train
from examples.digits.train import Floats, Integers, Parameters

CHANNELS = (16, 32)
ROWS = 32
"""Images in each step."""


def fit(images: Floats, labels: Integers, epochs: int) -> Parameters:
    """Train on images [N,1,8,8]. One thread: matrices as small as these are only held up by more."""
    with threadpool_limits(1):
        return train.train(images, labels, 0, train.Recipe(channels=CHANNELS, epochs=epochs))


def captured(folder: Path, outcomes: Path) -> tuple[Floats, Integers, Integers]:
    """Captured images with a known outcome: images [N,1,8,8], labels [N], and the numbers of their requests [N].

    `folder` has the server's Parquet files, `outcomes` is what `kairos feedback export` wrote.
    """
    told = pq.read_table(outcomes, columns=["id", "label"])
    truths = {
        identifier: int(label)
        for identifier, label in zip(told["id"].to_pylist(), told["label"].to_pylist(), strict=True)
        if label is not None
    }
    images: list[Floats] = []
    labels: list[int] = []
    numbers: list[int] = []
    for file in sorted(folder.rglob("*.parquet")):
        rows = pq.read_table(file, columns=["id", "input.image"])
        pixels = rows["input.image"].combine_chunks().flatten().to_numpy().reshape(-1, 1, 8, 8)
        for identifier, image in zip(rows["id"].to_pylist(), pixels, strict=True):
            if identifier in truths:
                images.append(image)
                labels.append(truths[identifier])
                numbers.append(int(identifier.removeprefix("q")))
    return np.array(images, np.float32).reshape(-1, 1, 8, 8), np.array(labels, np.int64), np.array(numbers, np.int64)
