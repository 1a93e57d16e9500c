"""Generates server/pb from protos/*.proto: `make protos`; `--check` only says whether it is current.

The messages live in a descriptor pool of their own (`server.pb.POOL`), so that a program may import Kairos
beside any other client or server of package `inference` (tritonclient, kserve, ...): the default pool holds
each full name only once and refuses the second.
"""

from __future__ import annotations

import argparse
import importlib.resources
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "server" / "pb"

REWRITES = (
    (re.compile(r"^import (\w+_pb2) as", re.MULTILINE), r"from server.pb import \1 as"),
    (re.compile(r"^import (\w+_pb2)$", re.MULTILINE), r"from server.pb import \1"),
    (re.compile(r"_descriptor_pool\.Default\(\)"), "_POOL"),
    (re.compile(r"^from google\.protobuf import descriptor_pool as _descriptor_pool$", re.MULTILINE),
     "from server.pb.pool import POOL as _POOL"),
)  # fmt: skip


def generate(into: Path) -> None:
    """Write the Python modules and type stubs of every .proto file into the folder `into`."""
    protos = sorted(str(path) for path in HERE.glob("*.proto"))
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    status = protoc.main(
        ["protoc", f"-I{HERE}", f"-I{well_known}"]
        + [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
        + protos
    )
    if status != 0:
        sys.exit(f"protoc failed with status {status}")
    for path in into.glob("*_pb2*.py*"):
        text = path.read_text()
        if path.name.endswith("_grpc.py") and "\nclass " not in text:  # a file without a service
            path.unlink()
            continue
        for pattern, replacement in REWRITES:
            text = pattern.sub(replacement, text)
        path.write_text(text)


def stale() -> list[str]:
    """Names of generated files that differ from what the .proto files give today."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.name: path.read_text() for path in Path(folder).glob("*_pb2*")}
    present = {path.name: path.read_text() for path in TARGET.glob("*_pb2*")}
    return sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))


def main() -> None:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when server/pb is not current")
    if not parser.parse_args().check:
        generate(TARGET)
    elif names := stale():
        sys.exit(f"not current: {', '.join(names)}; run `make protos`")


if __name__ == "__main__":
    main()
