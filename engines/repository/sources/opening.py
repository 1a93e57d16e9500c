"""From the URIs of repositories to folders that a model manager can look at."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.errors import LoadFailed
from engines.repository.sources import manifest, mlflow
from engines.repository.sources.blobs import Blobs
from engines.repository.sources.fetch import Patience, Progress
from engines.repository.sources.files import Remote, SourceError, scrub
from engines.repository.sources.mirror import Mirror, MirrorOptions, MirrorStatistics
from engines.repository.sources.objects import EXTRAS, ObjectStore

log = logging.getLogger(__name__)

_LOGGED_BYTES: Final = 64 << 20
"""A line for each piece of this size of a large file, and one when it is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What sources obey."""

    uris: Sequence[str] = ()
    """`s3://BUCKET/PREFIX` and the like, `mlflow:models:/NAME@ALIAS`."""
    cache_dir: Path = Path(".kairos/sources")
    """Where the copies are."""
    cache_bytes: int = 20 << 30
    """Most that copies take which no model uses; what is used stays, however much it is."""
    signing_keys: Sequence[Path] = ()
    """PEM files of Ed25519 public keys; with any, versions that none of them signed are not taken."""
    parallel: int = 4
    """Files fetched at the same time from one source. More need more memory, 8 MiB each."""
    settle_s: float = 1.0
    """See MirrorOptions."""


def is_remote(repository: str) -> bool:
    """Whether the name of a repository is a URI and no folder."""
    return "://" in repository or repository.startswith(("mlflow:", "models:/"))


def remotes(uris: Sequence[str]) -> Sequence[Remote]:
    """The sources that the URIs name; references to one MLflow model are one source. Raises LoadFailed."""
    found: list[Remote] = []
    references: dict[str, list[mlflow.Reference]] = {}
    for uri in uris:
        if uri.startswith(("mlflow:", "models:/")):
            reference = mlflow.parse(uri)
            references.setdefault(reference.model, []).append(reference)
        else:
            check(uri)
            found.append(ObjectStore(uri))
    return [*found, *(mlflow.MlflowRegistry(each) for each in references.values())]


def check(uri: str) -> None:
    """Raise LoadFailed for a URI that no source can be made of; connects to nothing."""
    if uri.startswith(("mlflow:", "models:/")):
        mlflow.parse(uri)
    elif uri.partition("://")[0] not in EXTRAS:
        raise LoadFailed(f"there is no model source '{scrub(uri)}'; known are s3://, gs://, az://, abfs:// and mlflow:")


class Sources:
    """All remote repositories of a server. Methods block; `sync` belongs to one thread at a time."""

    def __init__(
        self, options: SourceOptions, progress: Progress | None = None, patience: Patience | None = None
    ) -> None:
        self._patience = patience or Patience()
        keys = tuple(manifest.read_public_key(path) for path in options.signing_keys)
        if keys and any(uri.startswith(("mlflow:", "models:/")) for uri in options.uris):
            raise LoadFailed("models of an MLflow registry cannot be signed: leave out mlflow: or the signing keys")
        blobs = Blobs(options.cache_dir / "blobs", options.cache_bytes)
        obeyed = MirrorOptions(keys=keys, parallel=options.parallel, settle_s=options.settle_s)
        shown = progress or LoggedProgress()
        self.mirrors = tuple(
            Mirror(remote, options.cache_dir / "trees", blobs, obeyed, self._patience, shown)
            for remote in remotes(options.uris)
        )
        for mirror in self.mirrors:
            mirror.prepare()
        self._idle = threading.Event()
        self._idle.set()

    @property
    def roots(self) -> Sequence[Path]:
        """A folder for each source, to be looked at after `sync`."""
        return tuple(mirror.root for mirror in self.mirrors)

    def sync(self) -> None:
        """Follow all sources. One that does not answer stays as it is; raises LoadFailed if nothing was ever copied."""
        self._idle.clear()
        try:
            for mirror in self.mirrors:
                self._follow(mirror)
        finally:
            self._idle.set()

    def _follow(self, mirror: Mirror) -> None:
        try:
            if mirror.sync():
                log.info("%s has changed", mirror.remote.name)
        except (SourceError, OSError) as error:
            if not mirror.holds:
                raise LoadFailed(f"the model source cannot be read: {scrub(error)}") from error
            log.warning("models stay as they are: %s", scrub(error))

    def statistics(self) -> Mapping[str, MirrorStatistics]:
        """By the source's name."""
        return {mirror.remote.name: mirror.statistics for mirror in self.mirrors}

    def stop(self) -> None:
        """Give up what is being fetched, soon; what is here stays for the next time."""
        self._patience.stopped.set()

    def wait_idle(self, seconds: float) -> bool:
        """Whether no look is under way, or ends within this time. One at a source that says nothing takes longer."""
        return self._idle.wait(seconds)


class LoggedProgress:
    """A line when a file is whole, and some in between if it is large."""

    def __init__(self, say: Callable[[str], None] = log.info) -> None:
        self._say = say
        self._said: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, done: int, total: int) -> None:
        with self._lock:
            if done >= total:
                self._said.pop(name, None)
            elif done - self._said.setdefault(name, done) < _LOGGED_BYTES:
                return
            else:
                self._said[name] = done
        self._say(f"fetched {name}: {done} of {total} bytes")
