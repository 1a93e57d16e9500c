"""Object stores by fsspec: S3, Google Cloud Storage, Azure, and whatever else speaks its interface.

Credentials come from where each library looks for them (environment, instance roles), never from the URI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from engines.errors import LoadFailed
from engines.repository.sources.files import RemoteFile, SourceError, scrub

T = TypeVar("T")

EXTRAS: Final[Mapping[str, str]] = {
    "s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure", "memory": "sources"
}  # fmt: skip
"""Which extra of the kairos package brings the library for a scheme."""
PIECE_BYTES: Final = 8 << 20
"""One ranged request: what is lost at most when a transfer breaks off, and 2 ms of overhead against 80 ms of transfer
at 100 MB/s."""
_OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {"s3": {"config_kwargs": {"retries": {"max_attempts": 0}}}}
"""Who fetches tries again by itself, and stops when the server does; three loops within each other take minutes."""
_MARKS: Final = ("ETag", "etag", "generation", "md5Hash", "last_modified", "LastModified", "mtime", "created")


class ObjectStore:
    """A folder in an object store. `uri` is `SCHEME://BUCKET/PREFIX`."""

    def __init__(self, uri: str, piece_bytes: int = PIECE_BYTES) -> None:
        parts = urlsplit(uri)
        if ":" in parts.netloc.rpartition("@")[0] or parts.query:
            raise LoadFailed("credentials and options belong in the environment, not in the URI of a repository")
        self.name = scrub(uri.rstrip("/"))
        self._files = open_filesystem(parts.scheme)
        self._root = str(self._files._strip_protocol(uri)).rstrip("/")
        self._piece_bytes = piece_bytes

    def list(self) -> Sequence[RemoteFile]:
        self._files.invalidate_cache()
        found = self._ask(lambda: self._files.find(self._root, detail=True))
        if not found and not self._ask(lambda: self._files.exists(self._root)):
            raise SourceError(f"{self.name} is not there")
        return [
            RemoteFile(path=key[len(self._root) :].removeprefix("/"), size=int(info["size"]), mark=_mark(info), key=key)
            for key, info in found.items()
            if key.startswith(f"{self._root}/") and not key.endswith("/")
        ]

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        return start, self._pieces(file, start)

    def complete(self, model: Path) -> None:
        """Nothing follows from files alone."""

    def _pieces(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        for begin in range(start, file.size, self._piece_bytes):
            end = min(file.size, begin + self._piece_bytes)
            yield self._ask(lambda begin=begin, end=end: self._files.cat_file(file.key, start=begin, end=end))  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
        self._files.invalidate_cache()
        if _mark(self._ask(lambda: self._files.info(file.key))) != file.mark:
            raise SourceError(f"{self.name}: {file.path} has changed while it was fetched")

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except Exception as error:  # noqa: BLE001  (each store has error classes of its own)
            raise SourceError(f"{self.name}: {scrub(error) or type(error).__name__}") from None


def open_filesystem(scheme: str) -> Any:  # noqa: ANN401  (fsspec has no types)
    """Fsspec's file system for a scheme. Raises LoadFailed, naming the extra that is missing."""
    if scheme not in EXTRAS:
        raise LoadFailed(f"there is no model source '{scheme}:'; known are s3, gs, az, abfs and mlflow")
    try:
        import fsspec  # noqa: PLC0415  (an optional dependency)

        files = fsspec.filesystem(
            scheme, use_listings_cache=False, skip_instance_cache=scheme != "memory", **_OPTIONS.get(scheme, {})
        )
        if scheme == "s3":
            files.retries = 1  # as for _OPTIONS
    except ImportError as error:
        raise LoadFailed(
            f"'{scheme}:' needs the extra '{EXTRAS[scheme]}': pip install 'kairos[{EXTRAS[scheme]}]'"
        ) from error
    except Exception as error:  # noqa: BLE001  (as below)
        raise LoadFailed(f"'{scheme}:' cannot be used: {scrub(error)}") from None
    return files


def _mark(info: Mapping[str, Any]) -> str:
    return next((str(info[name]).strip('"') for name in _MARKS if info.get(name)), "") or str(info["size"])
