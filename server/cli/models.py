"""`kairos models`: what a running server or a repository has, copies of it, and signatures."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import rich_click as click
from rich.console import Console
from rich.table import Table

from engines.errors import LoadFailed
from engines.repository.layout import scan
from engines.repository.sources import manifest
from engines.repository.sources.fetch import Progress
from engines.repository.sources.files import SourceError, arrange
from engines.repository.sources.opening import LoggedProgress, SourceOptions, Sources, is_remote, remotes
from server.cli.channel import Address, with_server
from server.cli.options.models import default_cache_dir
from server.cli.progress import bars
from server.pb import grpc_service_pb2 as pb
from server.pb.grpc_service_pb2_grpc import GRPCInferenceServiceStub

_COLOURS = {"READY": "green", "LOADING": "yellow", "UNLOADING": "yellow", "UNAVAILABLE": "red"}
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)
_keys = click.option(
    "--model-signing-key",
    "keys",
    multiple=True,
    type=_FILE,
    help="Public key as PEM; take only what one of them signed.",
)


def _of_server(command: Any) -> Any:  # noqa: ANN401  (a command or a function, as click has it)
    options = (
        with_server,
        click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for it."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@_of_server
@click.pass_context
def models(context: click.Context, server: Address, timeout: float, as_json: bool) -> None:
    """List the models of a running server: versions, states, and how much each has answered.

    The commands look at repositories instead, here or at `s3://`, `gs://`, `az://` and `mlflow:`.
    """
    if context.invoked_subcommand is None:
        _print_served(server, timeout, as_json=as_json)


@models.command("list")
@click.argument("repository", required=False)
@_of_server
def list_models(repository: str | None, server: Address, timeout: float, as_json: bool) -> None:
    """List what a REPOSITORY (a folder or a URI) has, without fetching it; by default, what a running server has."""
    if repository is None:
        _print_served(server, timeout, as_json=as_json)
        return
    with _telling():
        rows = _listed(repository)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("model", "version", "files", "bytes", box=None)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def _listed(repository: str) -> Sequence[Mapping[str, Any]]:
    if is_remote(repository):
        listing, _ = arrange([file for remote in remotes([repository]) for file in remote.list()])
        sizes = {
            (name, unit): [file.size for file in files.values()]
            for name, units in listing.items()
            for unit, files in units.items()
        }
    else:
        found = scan([Path(repository)])
        if found.unreadable:
            raise LoadFailed(f"{repository} cannot be read: {found.unreadable[Path(repository)]}")
        sizes = {
            (name, str(number)): [(version.path / file).stat().st_size for file in version.files]
            for name, model in found.models.items()
            for number, version in model.versions.items()
        }
    return [
        {"name": name, "version": int(unit), "files": len(each), "bytes": sum(each)}
        for (name, unit), each in sorted(sizes.items(), key=lambda row: (row[0][0], int(row[0][1] or 0)))
        if unit
    ]


@models.command()
@click.argument("uri")
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--source-cache-dir",
    "cache",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="KAIROS_SOURCE_CACHE_DIR",
    help="Where copies are kept. Default: ~/.cache/kairos/sources, where servers look, too.",
)
@_keys
def pull(uri: str, folder: Path | None, cache: Path | None, keys: tuple[Path, ...]) -> None:
    """Fetch the models at URI into the cache, so that a server starts at once; with FOLDER, copy them there as well."""
    console = Console(stderr=True)
    options = SourceOptions(uris=(uri,), cache_dir=cache or default_cache_dir() / "sources", signing_keys=keys)
    with _telling(), _progress(console) as progress:
        sources = Sources(options, progress)
        for mirror in sources.mirrors:
            mirror.sync()
    found = scan(sources.roots)
    for name, model in found.models.items():
        target = model.path
        if folder is not None:
            target = folder / name
            shutil.copytree(model.path, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
        click.echo(f"{name} {','.join(map(str, model.versions))} {target}")
    refused = [f"{name}: {why}" for each in sources.statistics().values() for name, why in each.refused.items()]
    for line in refused:
        console.print(f"[bold red]not taken:[/] {line}", highlight=False)
    if refused:
        sys.exit(1)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    if console.is_terminal:
        with bars(console) as shown:
            yield shown
    else:
        logged = LoggedProgress(lambda line: click.echo(line, err=True))
        yield logged


@models.command()
@click.argument("private", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("public", type=click.Path(dir_okay=False, path_type=Path))
def keys(private: Path, public: Path) -> None:
    """Make a pair of Ed25519 keys: PRIVATE to sign models with, PUBLIC for `--model-signing-key`."""
    with _telling():
        manifest.make_keys(private, public)


@models.command()
@click.argument("model", type=_FOLDER)
@click.option("--key", required=True, type=_FILE, help="Private key as PEM; see `kairos models keys`.")
def sign(model: Path, key: Path) -> None:
    """Write the digests of all files of a MODEL's folder, and sign them; upload the folder afterwards."""
    with _telling():
        for subject in manifest.sign(model.resolve(), key):
            click.echo(f"signed {subject}")


@models.command()
@click.argument("model", type=_FOLDER)
@_keys
def verify(model: Path, keys: tuple[Path, ...]) -> None:
    """Check a MODEL's folder against its manifests and, with keys, their signatures; status 1 if anything is wrong."""
    with _telling():
        found = manifest.verify(model.resolve(), [manifest.read_public_key(path) for path in keys])
    for subject, wrong in found.items():
        click.echo(f"{subject}: {wrong or 'as it should be'}")
    if any(found.values()) or not found:
        sys.exit(1)


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except (LoadFailed, SourceError, OSError) as error:
        Console(stderr=True).print(f"[bold red]kairos models:[/] {error}", highlight=False)
        sys.exit(1)


def _print_served(server: Address, timeout: float, *, as_json: bool) -> None:
    with server.calling(GRPCInferenceServiceStub) as stub:
        index = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=timeout)
        counted = stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=timeout)
    answered = {(model.name, model.version): model for model in counted.model_stats}
    if as_json:
        rows = [
            {"name": m.name, "version": m.version, "state": m.state, "reason": m.reason}
            | {"inferences": answered[m.name, m.version].inference_count if (m.name, m.version) in answered else 0}
            for m in index.models
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("model", "version", "state", "rows answered", "rows a batch", "ms in the engine", "reason", box=None)
    for model in index.models:
        colour = _COLOURS.get(model.state, "dim")
        table.add_row(
            model.name,
            model.version,
            f"[{colour}]{model.state}[/]",
            *_figures(answered.get((model.name, model.version))),
            model.reason,
        )
    Console().print(table)


def _figures(model: pb.ModelStatistics | None) -> tuple[str, str, str]:
    if model is None:
        return "", "", ""
    batches = sum(batch.compute_infer.count for batch in model.batch_stats)
    spent_ns = sum(batch.compute_infer.ns for batch in model.batch_stats)
    if not batches:
        return str(model.inference_count), "", ""
    return str(model.inference_count), f"{model.inference_count / batches:.1f}", f"{spent_ns / batches / 1e6:.2f}"
