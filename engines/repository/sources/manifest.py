"""Digests and signatures that lie beside a model, and whether its files are what they say.

`SHA256SUMS` is what `sha256sum` writes and checks, after one line `# kairos NAME/VERSION` that binds it to its place.
`SHA256SUMS.sig` is the Ed25519 signature of its bytes, in base64. `build.json` has digests too, but is never signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from engines.errors import LoadFailed
from engines.repository.layout import version_of

SUMS: Final = "SHA256SUMS"
SIGNATURE: Final = "SHA256SUMS.sig"
BUILD: Final = "build.json"
FIRST: Final = (SUMS, SIGNATURE, BUILD)
"""Fetched before the files that they speak of."""

_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_SUBJECT: Final = "# kairos "
_EXTRA: Final = "signatures need the extra 'signing': pip install 'kairos[signing]'"


class Refused(LoadFailed):
    """Files are not what their manifest says, or nobody trusted has signed it."""


def expected(files: Mapping[str, Path], subject: str, keys: Sequence[bytes]) -> Mapping[str, str]:
    """SHA-256 by name, as the manifests among `files` say; empty where there is none. Raises Refused.

    With `keys` (raw Ed25519 public keys) the manifest must be signed by one of them and made for `subject`.
    """
    if keys:
        _check_signature(files, subject, keys)
    if SUMS in files:
        return parse(files[SUMS].read_bytes())
    return _parse_build(files[BUILD]) if BUILD in files else {}


def check_complete(names: Iterable[str], sums: Mapping[str, str], *, signed: bool) -> None:
    """Raise Refused when a file of the manifest is missing or, with `signed`, one is not in it."""
    there = set(names)
    if missing := sorted(sums.keys() - there):
        raise Refused(f"'{missing[0]}' is in the manifest but not there")
    if signed and (extra := sorted(there - sums.keys() - {SUMS, SIGNATURE})):
        raise Refused(f"'{extra[0]}' is not in the signed manifest")


def parse(content: bytes) -> Mapping[str, str]:
    """SHA-256 by name. Raises Refused."""
    found: dict[str, str] = {}
    for line in _text(content).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise Refused(f"{SUMS}: {line[:80]!r} is not a digest and a name")
        found[match[2].removeprefix("./")] = match[1]
    return found


def _parse_build(path: Path) -> Mapping[str, str]:
    try:
        files = json.loads(path.read_bytes()).get("files", {})
        return {str(name): str(facts["sha256"]).removeprefix("sha256:") for name, facts in files.items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise Refused(f"{BUILD} cannot be read: {error}") from error


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Refused(f"{SUMS} is not UTF-8 text") from error


def _check_signature(files: Mapping[str, Path], subject: str, keys: Sequence[bytes]) -> None:
    if SUMS not in files or SIGNATURE not in files:
        raise Refused(f"not signed: there is no {SUMS if SUMS not in files else SIGNATURE}")
    content = files[SUMS].read_bytes()
    try:
        signature = base64.b64decode(files[SIGNATURE].read_bytes(), validate=False)
    except binascii.Error as error:
        raise Refused(f"{SIGNATURE} is not base64") from error
    if not any(_made_by(key, signature, content) for key in keys):
        raise Refused("the signature is from no key that is trusted here")
    if f"{_SUBJECT}{subject}" not in _text(content).splitlines()[:1]:
        raise Refused(f"signed, but not for {subject}")


def _made_by(key: bytes, signature: bytes, content: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  (an optional dependency)
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    except ImportError as error:
        raise LoadFailed(_EXTRA) from error
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, content)
    except InvalidSignature:
        return False
    return True


def read_public_key(path: Path) -> bytes:
    """The raw key in a PEM file. Raises LoadFailed."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415  (as above)
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
    except ImportError as error:
        raise LoadFailed(_EXTRA) from error
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{path} is not a public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise LoadFailed(f"{path} is not an Ed25519 key")
    return key.public_bytes_raw()


def make_keys(private: Path, public: Path) -> None:
    """Write a new pair as PEM, the private one readable by its owner alone. Raises LoadFailed or OSError."""
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  (as above)
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    except ImportError as error:
        raise LoadFailed(_EXTRA) from error
    key = Ed25519PrivateKey.generate()
    private.touch(mode=0o600, exist_ok=False)
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def units(model: Path) -> Mapping[str, Mapping[str, Path]]:
    """What is signed apart: the files of each version, and those beside the versions, by subject and name."""
    numbers = {entry.name for entry in model.iterdir() if entry.is_dir() and version_of(entry.name)}
    found = {f"{model.name}/{number}": _below(model / number) for number in sorted(numbers, key=int)}
    beside = {name: path for name, path in _below(model).items() if name.split("/")[0] not in numbers}
    return found | ({model.name: beside} if beside else {})


def _below(folder: Path) -> Mapping[str, Path]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in paths.items() if not any(part.startswith(".") for part in name.split("/"))}


def sign(model: Path, private: Path) -> Sequence[str]:
    """Write the manifests and signatures of a model's folder; returns the subjects. Raises LoadFailed or OSError."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  (as above)
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415
    except ImportError as error:
        raise LoadFailed(_EXTRA) from error
    try:
        key = load_pem_private_key(private.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise LoadFailed(f"{private} is not a private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise LoadFailed(f"{private} is not an Ed25519 key")
    found = units(model)
    for subject, files in found.items():
        folder = model.parent / subject
        lines = [f"{digest(path)}  {name}" for name, path in files.items() if name not in (SUMS, SIGNATURE)]
        content = "\n".join([f"{_SUBJECT}{subject}", *lines, ""]).encode()
        (folder / SUMS).write_bytes(content)
        (folder / SIGNATURE).write_bytes(base64.b64encode(key.sign(content)) + b"\n")
    return list(found)


def verify(model: Path, keys: Sequence[bytes]) -> Mapping[str, str]:
    """What is wrong with each unit of a model's folder, by subject; an empty text for nothing."""
    return {subject: _wrong(files, subject, keys) for subject, files in units(model).items()}


def _wrong(files: Mapping[str, Path], subject: str, keys: Sequence[bytes]) -> str:
    try:
        sums = expected(files, subject, keys)
        if not sums:
            return f"there is no {SUMS} and no {BUILD}"
        check_complete(files, sums, signed=bool(keys))
    except Refused as error:
        return str(error)
    changed = [name for name, sum_ in sums.items() if digest(files[name]) != sum_]
    return f"'{changed[0]}' is not what the manifest says" if changed else ""


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
