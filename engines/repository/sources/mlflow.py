"""Models of an MLflow registry: `models:/NAME@ALIAS` and `models:/NAME/VERSION`, by its REST API.

A model version of the registry becomes version of the same number here. MLflow's own package is not used: it would
bring two hundred megabytes for five requests, and its downloads cannot be resumed.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote, urlencode, urlsplit

from engines.errors import LoadFailed
from engines.repository.sources.files import RemoteFile, SourceError, is_safe, scrub
from engines.repository.sources.objects import ObjectStore
from engines.repository.sources.signature import MLMODEL, complete_config, onnx_file

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

log = logging.getLogger(__name__)

_URI: Final = re.compile(r"(?:mlflow:)?models:/+([^/@]+)(?:/([1-9][0-9]{0,17})|@([^/@]+))")
_PROXIED: Final = "mlflow-artifacts"
_ENVIRONMENT_FILES: Final = frozenset({"conda.yaml", "python_env.yaml", "requirements.txt", "registered_model_meta"})
_EXTRA_FILES: Final = "extra_files/"
_DEPTH: Final = 8
_TIMEOUT_S: Final = 30.0
_CHUNK: Final = 1 << 20
_MODEL_FILE: Final = "model.onnx"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a URI names: a version by its number or by an alias."""

    model: str
    version: str = ""
    alias: str = ""

    def __str__(self) -> str:
        return f"{self.model}@{self.alias}" if self.alias else f"{self.model}/{self.version}"


def parse(uri: str) -> Reference:
    """`mlflow:models:/NAME@ALIAS` or `mlflow:models:/NAME/VERSION`; the prefix may be left out. Raises LoadFailed."""
    found = _URI.fullmatch(uri)
    if found is None or not is_safe(found[1]) or found[1].startswith("."):
        raise LoadFailed(f"'{scrub(uri)}' is neither mlflow:models:/NAME@ALIAS nor mlflow:models:/NAME/VERSION")
    return Reference(found[1], found[2] or "", found[3] or "")


class Artefacts(Protocol):
    """Where the files of a version are."""

    def list(self) -> Sequence[RemoteFile]: ...
    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]: ...


@dataclass(slots=True)
class Version:
    """A model version, found once: its files never change."""

    artefacts: Artefacts
    files: Sequence[RemoteFile] = field(default_factory=list)


class MlflowRegistry:
    """The versions that some references to one model mean just now, as a repository with that one model."""

    def __init__(self, references: Sequence[Reference], tracking_uri: str | None = None) -> None:
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
        if urlsplit(uri).scheme not in ("http", "https"):
            raise LoadFailed("mlflow: needs MLFLOW_TRACKING_URI, the http:// or https:// address of the registry")
        self._client = Client(uri)
        self._references = references
        self._versions: dict[tuple[str, str], Version] = {}
        self._places: dict[str, tuple[Artefacts, RemoteFile]] = {}
        """Where each file of the last listing is."""
        wanted = ", ".join(
            f"{ref.model}@{ref.alias}" if ref.alias else f"{ref.model}/{ref.version}" for ref in references
        )
        self.name = f"mlflow:models:/{wanted} of {scrub(uri)}"

    def list(self) -> Sequence[RemoteFile]:
        numbers = {(ref.model, self._resolve(ref)) for ref in self._references}
        self._versions = {key: self._versions.get(key) or self._open(*key) for key in numbers}
        # What several versions bring for the model as a whole is taken from the highest.
        rising = sorted(self._versions.items(), key=lambda item: int(item[0][1]))
        self._places = {file.path: (version.artefacts, file) for _, version in rising for file in version.files}
        return [file for _, file in self._places.values()]

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        artefacts, _ = self._places[file.path]
        return artefacts.read(file, start)

    def complete(self, model: Path) -> None:
        complete_config(model)

    def _resolve(self, reference: Reference) -> str:
        if not reference.alias:
            return reference.version
        asked = {"name": reference.model, "alias": reference.alias}
        return str(self._client.ask("mlflow/registered-models/alias", asked)["model_version"]["version"])

    def _open(self, model: str, number: str) -> Version:
        asked = {"name": model, "version": number}
        about = self._client.ask("mlflow/model-versions/get", asked)["model_version"]
        if about.get("status", "READY") != "READY":
            raise SourceError(f"{self.name}: version {number} is {about['status']}")
        uri = self._client.ask("mlflow/model-versions/get-download-uri", asked)["artifact_uri"]
        artefacts = self._artefacts(str(uri))
        # Times tell apart versions of the same number in a registry that was made anew.
        mark = f"{about.get('creation_timestamp', '')}:{about.get('source', '')}"
        found = {file.path: file for file in artefacts.list()}
        if MLMODEL not in found:
            raise SourceError(f"{self.name}: version {number} has no {MLMODEL} file")
        graph = onnx_file(b"".join(artefacts.read(found[MLMODEL], 0)[1]))
        files = [
            RemoteFile(place, file.size, f"{mark}:{file.mark}", file.key)
            for path, file in found.items()
            if (place := _place(path, f"{model}/{number}", model, graph))
        ]
        return Version(artefacts, files)

    def _artefacts(self, uri: str) -> Artefacts:
        scheme = urlsplit(uri).scheme
        if scheme == _PROXIED:
            return ProxiedArtefacts(self._client, urlsplit(uri).path.strip("/"))
        if scheme in ("", "file", "dbfs"):
            raise SourceError(
                f"{self.name}: files at '{scrub(uri)}' cannot be reached; serve them by MLflow or from a store"
            )
        return ObjectStore(uri)


def _place(path: str, version: str, model: str, graph: str) -> str:
    """Where a file of the MLflow model goes; empty for those that are of no use here."""
    if path in _ENVIRONMENT_FILES or "input_example" in path:
        return ""
    if path == graph:
        return f"{version}/{_MODEL_FILE}"
    if path.startswith(_EXTRA_FILES) or path == "config.pbtxt":
        return f"{model}/{path.removeprefix(_EXTRA_FILES)}"
    # Weights beside the graph are found relative to it.
    home = str(PurePosixPath(graph).parent)
    return f"{version}/{path if home == '.' else path.removeprefix(f'{home}/')}"


class ProxiedArtefacts:
    """Files that the MLflow server hands out itself."""

    def __init__(self, client: Client, root: str) -> None:
        self._client = client
        self._root = root

    def list(self) -> Sequence[RemoteFile]:
        return list(self._walk("", _DEPTH))

    def _walk(self, folder: str, depth: int) -> Iterator[RemoteFile]:
        asked = {"path": f"{self._root}/{folder}".rstrip("/")}
        for entry in self._client.ask("mlflow-artifacts/artifacts", asked).get("files", ()):
            path = f"{folder}/{PurePosixPath(entry['path']).name}".lstrip("/")
            if not entry.get("is_dir"):
                yield RemoteFile(path, int(entry.get("file_size", 0)), "", f"{self._root}/{path}")
            elif depth > 0:
                yield from self._walk(path, depth - 1)

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and start == file.size:
            return start, iter(())
        response = self._client.get(f"mlflow-artifacts/artifacts/{quote(file.key)}", headers)
        return (start if response.status == 206 else 0), self._client.stream(response)


class Client:
    """Requests to an MLflow server. Credentials come from the variables that MLflow itself reads."""

    def __init__(self, uri: str) -> None:
        try:
            import urllib3  # noqa: PLC0415  (an optional dependency)
            import yaml  # noqa: F401, PLC0415  (needed later, better missed now)
        except ImportError as error:
            raise LoadFailed("'mlflow:' needs the extra 'mlflow': pip install 'kairos[mlflow]'") from error
        self._base = f"{uri.rstrip('/')}/api/2.0"
        self._name = scrub(uri)
        self._errors = urllib3.exceptions.HTTPError
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(_TIMEOUT_S), retries=False, headers=_credentials(os.environ), maxsize=8
        )

    def ask(self, method: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """The answer as JSON. Raises SourceError."""
        response = self.get(f"{method}?{urlencode(parameters)}", {})
        content = b"".join(self.stream(response))
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise SourceError(f"{self._name} does not answer in JSON") from error
        if not isinstance(answer, dict):
            raise SourceError(f"{self._name} does not answer with an object")
        return answer

    def get(self, path: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """The answer, not yet read. Raises SourceError for a status that is none of success."""
        try:
            response = self._pool.request(
                "GET", f"{self._base}/{path}", headers={**self._pool.headers, **headers}, preload_content=False
            )
        except self._errors as error:
            raise SourceError(f"{self._name} does not answer: {scrub(error)}") from None
        if response.status not in (200, 206):
            reason = f"status {response.status}"
            with suppress(ValueError, TypeError, self._errors):
                reason = str(json.loads(response.read(_CHUNK))["message"])
            response.release_conn()
            raise SourceError(f"{self._name}: {scrub(reason)}")
        return response

    def stream(self, response: BaseHTTPResponse) -> Iterator[bytes]:
        """The rest of the answer. Raises SourceError when it breaks off."""
        try:
            yield from response.stream(_CHUNK)
        except self._errors as error:
            raise SourceError(f"{self._name} broke off: {scrub(error)}") from None
        finally:
            response.close()


def _credentials(environment: Mapping[str, str]) -> dict[str, str]:
    from urllib3.util import make_headers  # noqa: PLC0415  (an optional dependency)

    user, password = (environment.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if user:
        return dict(make_headers(basic_auth=f"{user}:{password}"))
    token = environment.get("MLFLOW_TRACKING_TOKEN", "")
    return {"Authorization": f"Bearer {token}"} if token else {}
