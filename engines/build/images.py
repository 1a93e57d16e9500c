"""Pictures on disk as inputs of a model, by steps that are declared in a file, since the graph does not know them."""

from __future__ import annotations

import importlib
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.build.errors import BuildFailed
from engines.tensor import Array

SUFFIXES: Final = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CHANNELS: Final = {"RGB": 3, "BGR": 3, "L": 1}
LAYOUTS: Final = ("NCHW", "NHWC")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """value = (pixel * scale - mean) / std, after resizing and cropping."""

    resize: int = 0
    """Pixels of the shorter side, the other in proportion, bilinear. 0: as it is."""
    crop: int = 0
    """Pixels of the sides of the square that is cut out of the middle. 0: the whole picture."""
    channels: str = "RGB"
    """RGB, BGR or L (grey)."""
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    """Of each channel, or one for all; after scaling."""
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"
    """NCHW or NHWC."""

    @classmethod
    def read(cls, path: Path) -> Preprocessing:
        """From a TOML file with these names. Raises BuildFailed."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BuildFailed(f"{path} cannot be read: {error}") from error
        known = [field.name for field in fields(cls)]
        if unknown := sorted(values.keys() - set(known)):
            raise BuildFailed(f"{path}: '{unknown[0]}' is not known; known are {', '.join(known)}")
        for name in ("mean", "std"):
            if name in values:
                listed = values[name] if isinstance(values[name], list) else [values[name]]
                values[name] = tuple(float(value) for value in listed)
        steps = cls(**values)
        steps.check(path)
        return steps

    def check(self, path: Path) -> None:
        """Raise BuildFailed, naming the file, unless the values make sense together."""
        if self.channels not in CHANNELS:
            raise BuildFailed(f"{path}: channels must be one of {', '.join(CHANNELS)}, not '{self.channels}'")
        if self.layout not in LAYOUTS:
            raise BuildFailed(f"{path}: layout must be one of {', '.join(LAYOUTS)}, not '{self.layout}'")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, CHANNELS[self.channels]):
                raise BuildFailed(f"{path}: {name} has {len(values)} values for {CHANNELS[self.channels]} channel(s)")
        if 0.0 in self.std:
            raise BuildFailed(f"{path}: std must not be 0")


def find_images(folder: Path) -> list[Path]:
    """All pictures below the folder, in order of names. Raises BuildFailed when there are none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise BuildFailed(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def read_image(path: Path, steps: Preprocessing) -> Array:
    """One picture as FP32 [C,H,W] or [H,W,C]."""
    try:
        pillow: Any = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise BuildFailed("images need Pillow: pip install 'kairos[build]'") from error
    try:
        with pillow.open(path) as opened:
            picture = opened.convert("L" if steps.channels == "L" else "RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for broken files
        raise BuildFailed(f"{path} is not a picture that can be read: {error}") from error
    if steps.resize:
        ratio = steps.resize / min(picture.size)
        picture = picture.resize([max(1, round(side * ratio)) for side in picture.size], pillow.Resampling.BILINEAR)
    if steps.crop:
        width, height = picture.size
        if min(width, height) < steps.crop:
            raise BuildFailed(f"{path}: {width}x{height} pixels are too few for a crop of {steps.crop}")
        left, top = (width - steps.crop) // 2, (height - steps.crop) // 2
        picture = picture.crop((left, top, left + steps.crop, top + steps.crop))
    pixels = np.asarray(picture, np.float32).reshape(picture.height, picture.width, -1)
    if steps.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = np.array(steps.mean, np.float32), np.array(steps.std, np.float32)
    values = (pixels * np.float32(steps.scale) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1) if steps.layout == "NCHW" else values, np.float32)
