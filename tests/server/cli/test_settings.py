"""Where settings come from, who wins, and what is refused; the page that lists them is current."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from docs import make_settings
from engines.errors import LoadFailed
from engines.repository.manager import ControlMode
from server.app import Ending, ServerOptions
from server.cli import cli
from server.transport.listen import TransportKind
from server.transport.status import StatusCodes

module: Any = importlib.import_module("server.cli.serve")  # whose name the command has, too

Run = Callable[..., tuple[Result, ServerOptions | None]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`kairos serve` with these arguments, environment and settings file, up to the point where it would start."""

    def invoke(
        *arguments: str, env: dict[str, str] | None = None, file: str = ""
    ) -> tuple[Result, ServerOptions | None]:
        started: list[ServerOptions] = []

        async def run(options: ServerOptions, _: object) -> Ending:
            started.append(options)
            return Ending(threads_left=False, hopeless=False)

        monkeypatch.setattr(module, "run", run)
        command = ["serve", "--model-repository", str(tmp_path), *arguments]
        if file:
            path = tmp_path / "kairos.toml"
            path.write_text(file)
            command += ["--config", str(path)]
        result = CliRunner().invoke(cli, command, env={**dict.fromkeys(_variables()), **(env or {})})
        return result, started[0] if started else None

    return invoke


def _variables() -> list[str]:
    return [str(option.envvar) for option in module.serve.params if isinstance(option, click.Option)]


def test_without_settings_everything_has_its_default(run: Run, tmp_path: Path) -> None:
    result, options = run()
    assert result.exit_code == 0, result.output
    assert options is not None
    assert options.repository.roots == (tmp_path,)
    assert options.repository.mode is ControlMode.NONE
    assert (options.listen.host, options.listen.port) == ("127.0.0.1", 8001)
    assert options.listen.transport is TransportKind.HTTP2
    assert options.metrics_port == 8002
    assert options.service.name == "kairos"


@pytest.mark.parametrize(
    ("flag", "variable", "key", "port"),
    [(None, None, None, 8001), (None, None, 3, 3), (None, 2, 3, 2), (1, 2, 3, 1), (1, None, 3, 1)],
)
def test_flag_beats_environment_beats_file_beats_default(
    run: Run, flag: int | None, variable: int | None, key: int | None, port: int
) -> None:
    _, options = run(
        *(() if flag is None else ("--grpc-port", str(flag))),
        env={} if variable is None else {"KAIROS_GRPC_PORT": str(variable)},
        file="" if key is None else f"grpc-port = {key}",
    )
    assert options is not None
    assert options.listen.port == port


def test_all_kinds_of_settings_from_a_file(run: Run, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    file = """
        model-control-mode = "explicit"
        load-model = ["a", "b"]
        allow-metrics = false
        exit-timeout-secs = 1.5
        status-codes = "triton"
        max-message-mb = 2
        log-verbose = 1
    """
    _, options = run(file=file)
    assert options is not None
    assert options.repository.mode is ControlMode.EXPLICIT
    assert options.repository.startup_models == ("a", "b")
    assert options.metrics_port is None
    assert options.exit_timeout_s == 1.5
    assert options.service.status_codes is StatusCodes.TRITON
    assert options.listen.max_message_bytes == 2 << 20
    assert options.logs.verbose == 1


def test_repeated_settings_from_the_environment(run: Run) -> None:
    _, options = run(env={"KAIROS_LOAD_MODEL": "a b", "KAIROS_ALLOW_METRICS": "no", "KAIROS_EXIT_ON_ERROR": "1"})
    assert options is not None
    assert options.repository.startup_models == ("a", "b")
    assert options.metrics_port is None
    assert options.exit_on_error


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("grpc-prot = 1", "unknown setting 'grpc_prot'"),
        ("[grpc]\nport = 1", "unknown setting 'grpc'"),
        ('config = "other.toml"', "unknown setting 'config'"),
        ("grpc-port = ", "Invalid value"),
        ('grpc-port = "many"', "'many' is not a valid integer range"),
        ("grpc-port = 70000", "70000 is not in the range 0<=x<=65535"),
    ],
)
def test_files_with_mistakes_are_refused(run: Run, file: str, text: str) -> None:
    result, options = run(file=file)
    assert options is None
    assert result.exit_code == 2
    assert text in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [("--grpc-port", "-1"), ("--nonsense",), ("--status-codes", "mine")])
def test_flags_with_mistakes_are_refused(run: Run, arguments: tuple[str, ...]) -> None:
    result, options = run(*arguments)
    assert options is None
    assert result.exit_code == 2


def test_a_server_that_cannot_start_says_why(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def fail(*_: object) -> None:
        raise LoadFailed("the reason")

    monkeypatch.setattr(module, "run", fail)
    result = CliRunner().invoke(cli, ["serve", "--model-repository", str(tmp_path)])
    assert result.exit_code == 1
    assert "kairos cannot start: the reason" in result.output


def test_help_names_every_setting_and_its_variable() -> None:
    result = CliRunner().invoke(cli, ["serve", "--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert result.exit_code == 0
    for option in module.serve.params:
        assert isinstance(option, click.Option)
        assert option.opts[0] in result.output
        assert option.help, option.opts


def test_every_setting_stands_on_the_page_as_it_is_declared() -> None:
    assert make_settings.PAGE.read_text() == make_settings.page(), "run `make settings`"
    for variable in _variables():
        assert f"`{variable}`" in make_settings.PAGE.read_text()


def test_the_loop_of_the_server_is_the_precise_one(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loops: list[Any] = []

    async def note(*_: object) -> None:
        loops.append(type(asyncio.get_running_loop()).__name__)

    monkeypatch.setattr(module, "run", note)
    CliRunner().invoke(cli, ["serve", "--model-repository", str(tmp_path)])
    assert loops == ["ServerLoop"]
