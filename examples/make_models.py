"""Writes the two example models that nothing needs to learn: `simple` (integers) and `text` (strings).

python examples/make_models.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REPOSITORY = Path(__file__).resolve().parent / "models"


def simple() -> onnx.ModelProto:
    """OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1; all INT32 [N,16]."""

    def row(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT32, ["N", 16])

    graph = helper.make_graph(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        "simple",
        [row("INPUT0"), row("INPUT1")],
        [row("OUTPUT0"), row("OUTPUT1")],
    )
    return _model(graph, opset=17, ir_version=8)


def text() -> onnx.ModelProto:
    """From strings [N,1]: `lower` BYTES, `words` INT64 and `is_question` BOOL, all [N,1].

    Lower case means ASCII letters only: other locales exist on some machines and not on others.
    """
    constants = [
        helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1]),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["text", "flat"], ["row"]),  # StringNormalizer takes [N] alone
            helper.make_node("StringNormalizer", ["row"], ["low"], case_change_action="LOWER", locale="C"),
            helper.make_node("Reshape", ["low", "column"], ["lower"]),
            helper.make_node("StringSplit", ["text"], ["tokens", "words"]),
            helper.make_node("RegexFullMatch", ["text"], ["is_question"], pattern=r"(?s).*\?\s*"),
        ],
        "text",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["N", 1])],
        [
            helper.make_tensor_value_info("lower", TensorProto.STRING, ["N", 1]),
            helper.make_tensor_value_info("words", TensorProto.INT64, ["N", 1]),
            helper.make_tensor_value_info("is_question", TensorProto.BOOL, ["N", 1]),
        ],
        constants,
    )
    return _model(graph, opset=20, ir_version=9)  # StringSplit and RegexFullMatch came with opset 20


def _model(graph: onnx.GraphProto, opset: int, ir_version: int) -> onnx.ModelProto:
    model = helper.make_model(
        graph,
        producer_name="kairos-examples",
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


MODELS: Final[Mapping[str, Callable[[], onnx.ModelProto]]] = {"simple": simple, "text": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="where to write (default: %(default)s)")
    repository = parser.parse_args().repository
    for name, make in MODELS.items():
        path = repository / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(make(), path)
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
