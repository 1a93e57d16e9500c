"""Trains the digit classifier of the example repository, in NumPy alone, and writes it as ONNX.

    python examples/digits/train.py                     # both versions, a quarter of a minute
    python examples/digits/train.py --versions 2

The data are scikit-learn's handwritten digits: 1,797 images of 8x8 pixels with values 0 to 16, of which
every fifth of each class is held out. A network is a list of (weight, bias): 4-D weights are 3x3
convolutions, each followed by a 2x2 max-pool and a ReLU; the last pair is the dense layer. So the parameters
are the architecture, and `train`, `predict` and `export` need nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent / "models"
HELD_OUT = HERE / "held_out.npz"

CLASSES = 10
PIXEL_MAX = 16.0
OPSET = 17
IR_VERSION = 8  # the oldest that opset 17 allows: any runtime of the last years loads it

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Parameters = list[tuple[Floats, Floats]]
Backward = Callable[[Floats], tuple[Floats, Floats, Floats]]
"""From the gradient of a layer's output to those of its input, weight and bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What tells one version of the model from another."""

    channels: tuple[int, ...]
    """Filters of each convolution, first to last; each also halves the image, so three at most."""
    epochs: int
    shift: bool = False
    """Whether each epoch moves every training image by up to one pixel either way."""


RECIPES = {
    1: Recipe(channels=(4,), epochs=20),
    2: Recipe(channels=(24, 48), epochs=40, shift=True),
}


@dataclass(frozen=True, slots=True)
class Split:
    """Images are [N,1,8,8] with pixels 0 to 16, labels [N]."""

    images: Floats
    labels: Integers
    held_out_images: Floats
    held_out_labels: Integers


def load_split() -> Split:
    """Split the same way every time: the last of every five images of each class is held out."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.float32).reshape(-1, 1, 8, 8)
    held_out = np.zeros(len(labels), bool)
    for digit in range(CLASSES):
        held_out[np.flatnonzero(labels == digit)[4::5]] = True
    return Split(images[~held_out], labels[~held_out], images[held_out], labels[held_out])


def convolve(images: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """3x3 convolution of [N,C,H,W] with [K,C,3,3], zeros around the border; also the windows it looked at."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))  # [N,C,H,W,3,3]
    return np.moveaxis(np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))), -1, 1), windows


def convolution(images: Floats, weight: Floats, bias: Floats) -> tuple[Floats, Backward]:
    """Convolve, keep the largest of each 2x2 pixels, cut off below zero."""
    raw, windows = convolve(images, weight)
    count, filters, height, width = raw.shape
    blocks = raw.reshape(count, filters, height // 2, 2, width // 2, 2)
    largest = blocks.max(axis=(3, 5), keepdims=True)
    shape = (count, filters, height // 2, width // 2)
    active = np.maximum(largest.reshape(shape) + bias[:, None, None], 0)

    def backward(gradient: Floats) -> tuple[Floats, Floats, Floats]:
        gradient = gradient.reshape(shape) * (active > 0)
        spread = (gradient[:, :, :, None, :, None] * (blocks == largest)).reshape(raw.shape)
        mirrored = weight.swapaxes(0, 1)[:, :, ::-1, ::-1]
        by_weight = np.tensordot(spread, windows, axes=((0, 2, 3), (0, 2, 3)))
        return convolve(spread, mirrored)[0], by_weight, gradient.sum(axis=(0, 2, 3))

    return active, backward


def dense(features: Floats, weight: Floats, bias: Floats) -> tuple[Floats, Backward]:
    """Weigh all features of each image against each class."""
    flat = features.reshape(len(features), -1)

    def backward(gradient: Floats) -> tuple[Floats, Floats, Floats]:
        return gradient @ weight.T, flat.T @ gradient, gradient.sum(axis=0)

    return flat @ weight + bias, backward


def forward(parameters: Parameters, images: Floats) -> tuple[Floats, list[Backward]]:
    """Logits [N,10], and each layer's way back."""
    signal, tape = images / np.float32(PIXEL_MAX), []
    for weight, bias in parameters:
        signal, backward = (convolution if weight.ndim == 4 else dense)(signal, weight, bias)
        tape.append(backward)
    return signal, tape


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def predict(parameters: Parameters, images: Floats) -> Floats:
    """Probabilities [N,10] of images [N,1,8,8]."""
    return softmax(forward(parameters, images)[0])


def accuracy(probabilities: Floats, labels: Integers) -> float:
    return float(np.mean(probabilities.argmax(axis=-1) == labels))


def initial(channels: tuple[int, ...], random: np.random.Generator) -> Parameters:
    """He's initialisation: variance 2 / fan-in, biases zero."""
    inputs = (1, *channels[:-1])
    shapes: list[tuple[int, ...]] = [(k, c, 3, 3) for k, c in zip(channels, inputs, strict=True)]
    shapes.append((channels[-1] * (8 >> len(channels)) ** 2, CLASSES))

    def pair(shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        fan_in, out = (shape[1] * 9, shape[0]) if len(shape) == 4 else shape
        weight = random.normal(0, np.sqrt(2 / fan_in), shape)
        return weight.astype(np.float32), np.zeros(out, np.float32)

    return [pair(shape) for shape in shapes]


def gradients(parameters: Parameters, images: Floats, labels: Integers) -> list[Floats]:
    """Of the mean cross-entropy: by each weight and bias in turn."""
    logits, tape = forward(parameters, images)
    signal = (softmax(logits) - np.eye(CLASSES, dtype=np.float32)[labels]) / np.float32(len(labels))
    return backpropagate(tape, signal)


def backpropagate(tape: list[Backward], signal: Floats) -> list[Floats]:
    """From the gradient of the logits to those of each weight and bias in turn."""
    found: list[Floats] = []
    for backward in reversed(tape):
        signal, by_weight, by_bias = backward(signal)
        found = [by_weight, by_bias, *found]
    return found


class Adam:
    """Kingma and Ba's Adam (arXiv:1412.6980, algorithm 1); changes the variables in place."""

    def __init__(self, variables: list[Floats]) -> None:
        self.steps = 0
        self.state = [(variable, np.zeros_like(variable), np.zeros_like(variable)) for variable in variables]

    def step(self, found: list[Floats], rate: float) -> None:
        self.steps += 1
        correction = np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for (variable, mean, square), gradient in zip(self.state, found, strict=True):
            mean[...] = 0.9 * mean + 0.1 * gradient
            square[...] = 0.999 * square + 0.001 * gradient**2
            variable[...] -= rate * correction * mean / (np.sqrt(square) + 1e-8)


def shifted(images: Floats, random: np.random.Generator) -> Floats:
    """Each image moved by -1, 0 or 1 pixels down and across, blank where it came from."""
    windows = sliding_window_view(np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))), (8, 8), axis=(2, 3))
    down, across = random.integers(0, 3, (2, len(images)))
    return np.asarray(windows[np.arange(len(images)), :, down, across])


def train(
    images: Floats,
    labels: Integers,
    seed: int,
    recipe: Recipe = RECIPES[2],
    after_epoch: Callable[[Parameters], object] = lambda _: None,
) -> Parameters:
    """Train on images [N,1,8,8] and labels [N]; the same arguments give the same network."""
    random = np.random.default_rng(seed)
    parameters = initial(recipe.channels, random)
    optimiser = Adam([variable for pair in parameters for variable in pair])
    for epoch in range(recipe.epochs):
        rate = 0.003 * 0.5 * (1 + np.cos(np.pi * epoch / recipe.epochs))  # a cosine from 0.003 towards 0
        seen = shifted(images, random) if recipe.shift else images
        for rows in np.array_split(random.permutation(len(seen)), len(seen) // 32):
            optimiser.step(gradients(parameters, seen[rows], labels[rows]), rate)
        after_epoch(parameters)
    return parameters


def export(parameters: Parameters) -> onnx.ModelProto:
    """ONNX of the network: `image` FP32 [N,1,8,8] to `logits` and `probabilities` FP32 [N,10]."""
    constants = [numpy_helper.from_array(np.array(1 / PIXEL_MAX, np.float32), "scale")]
    nodes = [helper.make_node("Mul", ["image", "scale"], ["scaled"])]
    signal = "scaled"
    for index, (weight, bias) in enumerate(parameters):
        names = [f"weight{index}", f"bias{index}"]
        constants += [numpy_helper.from_array(weight, names[0]), numpy_helper.from_array(bias, names[1])]
        if weight.ndim == 4:
            conv, pool, signal, before = f"conv{index}", f"pool{index}", f"active{index}", signal
            nodes += [
                helper.make_node("Conv", [before, *names], [conv], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
                helper.make_node("MaxPool", [conv], [pool], kernel_shape=[2, 2], strides=[2, 2]),
                helper.make_node("Relu", [pool], [signal]),
            ]
        else:
            nodes += [
                helper.make_node("Flatten", [signal], ["features"]),
                helper.make_node("Gemm", ["features", *names], ["logits"]),
                helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
            ]
    for node in nodes:
        node.name = node.output[0]  # profilers and quantisers speak of nodes by name
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 1, 8, 8])],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", CLASSES])
            for name in ("logits", "probabilities")
        ],
        constants,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, producer_name="kairos-examples", opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, images: Floats) -> Floats:
    """Probabilities as ONNX Runtime computes them."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["probabilities"], {"image": images})[0])


def make_version(version: int, split: Split, repository: Path, progress: Progress) -> str:
    """Train, export, compare with ONNX Runtime and write one version; what to say about it."""
    recipe = RECIPES[version]
    task = progress.add_task(f"digits version {version}", total=recipe.epochs, accuracy="")

    def show(parameters: Parameters) -> None:
        reached = accuracy(predict(parameters, split.held_out_images), split.held_out_labels)
        progress.update(task, advance=1, accuracy=f"held-out accuracy {reached:.2%}")

    parameters = train(split.images, split.labels, version, recipe, show)
    model = export(parameters)
    served, own = (run(model, split.held_out_images), predict(parameters, split.held_out_images))
    np.testing.assert_allclose(served, own, atol=1e-5, err_msg="ONNX Runtime disagrees with the NumPy network")
    path = repository / "digits" / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    size = sum(variable.size for pair in parameters for variable in pair)
    return (
        f"version {version}: {size:,} parameters, {path.stat().st_size:,} bytes, "
        f"held-out accuracy {accuracy(served, split.held_out_labels):.2%}, "
        f"at most {np.abs(served - own).max():.1e} from the NumPy network"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="where to write (default: %(default)s)")
    arguments = parser.parse_args()
    split = load_split()
    np.savez_compressed(HELD_OUT, images=split.held_out_images.astype(np.uint8), labels=split.held_out_labels)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[accuracy]}"), console=console) as progress:
        said = [make_version(version, split, arguments.repository, progress) for version in arguments.versions]
    console.print(
        f"{len(split.labels):,} images trained on, {len(split.held_out_labels)} held out",
        *said,
        sep="\n",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
