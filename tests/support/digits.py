"""The digit classifier of the examples, and data of all kinds for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.digits import train

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = EXAMPLES / "models" / "digits" / "2" / "model.onnx"
HELD_OUT = EXAMPLES / "digits" / "held_out.npz"


def write_calibration(folder: Path, rows: int = 256) -> Path:
    """Training images, none of which is in HELD_OUT."""
    path = folder / "calibration.npz"
    np.savez(path, image=train.load_split().images[:rows])
    return path


def write_constant(folder: Path) -> Path:
    """Images that are all black: nothing can be learnt from them."""
    path = folder / "constant.npz"
    np.savez(path, image=np.zeros((64, 1, 8, 8), np.float32))
    return path
