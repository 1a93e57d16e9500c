"""Reads the operator's TOML file of rules and actions. Whatever is wrong is named by its place in the file."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from server.watch.triggers import Aggregate, Rule

Value = TypeVar("Value")

_UNITS: Final[Mapping[str, float]] = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|d)")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class BadTriggers(ValueError):
    """The file cannot be obeyed; the text says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """How often, and how long apart, an action is tried."""

    attempts: int
    """1: once."""
    timeout_s: float
    """Of one attempt."""
    first_wait_s: float = 1.0
    """After the first failure; doubled after each further one, half of it at random."""
    max_wait_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookOptions:
    """POST the event to a URL."""

    url: str
    secret_file: Path | None = None
    secret_env: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    retry: RetryOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOptions:
    """Run a program, without a shell."""

    argv: tuple[str, ...]
    retry: RetryOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """Write a manifest of a Kubernetes Job."""

    template: Path
    output: Path | None
    """A folder. None: standard output."""
    retry: RetryOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """Say it in the log."""

    retry: RetryOptions


ActionOptions: TypeAlias = WebhookOptions | CommandOptions | JobOptions | LogOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerOptions:
    """What the file says."""

    rules: tuple[Rule, ...]
    actions: Mapping[str, ActionOptions]
    every_s: float = 10.0
    """How often the rules are looked at."""
    source: str = "/kairos"
    """Which server events say they come from."""


def read_triggers(path: Path) -> TriggerOptions:
    """Raises BadTriggers."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadTriggers(f"{path}: {error}") from error
    try:
        return _triggers(_Table(content, ""), path.absolute().parent)
    except BadTriggers as error:
        raise BadTriggers(f"{path}: {error}") from error


class _Table:
    """A table of the file, that knows its place, and which of its keys were asked for."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self._values = values
        self.place = place
        self._asked: set[str] = set()

    def fault(self, key: str, text: str) -> BadTriggers:
        """An error that names the key."""
        return BadTriggers(f"{self.place}.{key}: {text}" if self.place else f"{key}: {text}")

    def has(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, read: Callable[[Any], Value], default: Value | None = None) -> Value:
        """The key's value as `read` has it. Without a default it must be there."""
        self._asked.add(key)
        if key not in self._values:
            if default is None:
                raise self.fault(key, "is missing")
            return default
        try:
            return read(self._values[key])
        except ValueError as error:
            raise self.fault(key, str(error)) from error

    def tables(self, key: str) -> list[_Table]:
        """An array of tables."""
        none: list[Mapping[str, Any]] = []
        found = self.get(key, _tables, none)
        return [_Table(values, f"{key}[{number}]") for number, values in enumerate(found, 1)]

    def named(self, key: str) -> dict[str, _Table]:
        """Tables by name."""
        none: Mapping[str, Any] = {}
        found = self.get(key, _table, none)
        return {name: _Table(_table_at(values, f"{key}.{name}"), f"{key}.{name}") for name, values in found.items()}

    def end(self) -> None:
        """Raises BadTriggers for a key that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                close = difflib.get_close_matches(key, self._asked, 1)
                hint = f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(sorted(self._asked))}"
                raise self.fault(key, f"unknown key{hint}")


def _triggers(table: _Table, folder: Path) -> TriggerOptions:
    actions = {name: _action(each, folder) for name, each in table.named("action").items()}
    actions.setdefault("log", LogOptions(retry=RetryOptions(attempts=1, timeout_s=10.0)))
    rules = [_rule(each, actions) for each in table.tables("rule")]
    for number, rule in enumerate(rules, 1):
        if rule.name in {other.name for other in rules[: number - 1]}:
            raise BadTriggers(f"rule[{number}].name: there is a rule '{rule.name}' already")
    options = TriggerOptions(
        rules=tuple(rules),
        actions=actions,
        every_s=table.get("every", _duration, 10.0),
        source=table.get("source", _text, "/kairos"),
    )
    table.end()
    if not rules:
        raise BadTriggers("rule: there is none; each begins with [[rule]]")
    return options


def _rule(table: _Table, actions: Mapping[str, ActionOptions]) -> Rule:
    rule = Rule(
        name=table.get("name", _name),
        signal=table.get("signal", _text),
        model=table.get("model", _text, ""),
        above=table.get("above", _number, math.nan),
        below=table.get("below", _number, math.nan),
        alarm=table.get("alarm", _flag, False),
        clear=table.get("clear", _number, math.nan),
        raise_after=table.get("for", _count, 1),
        clear_after=table.get("clear_for", _count, 1),
        window_s=table.get("window", _duration, 0.0),
        aggregate=table.get("aggregate", _aggregate, Aggregate.MEAN),
        min_samples=table.get("min_samples", _count, 1),
        cooldown_s=table.get("cooldown", _duration, 0.0),
        actions=table.get("actions", _texts, ("log",)),
    )
    table.end()
    for action in rule.actions:
        if action not in actions:
            raise table.fault("actions", f"there is no [action.{action}]; there are {', '.join(sorted(actions))}")
    if table.has("above") + table.has("below") + rule.alarm != 1:
        raise table.fault("above", "a rule has exactly one of above, below and alarm = true")
    if rule.alarm and (table.has("clear") or table.has("window") or table.has("aggregate")):
        raise table.fault("alarm", "goes without clear, window and aggregate: the reading has its own test")
    if rule.clear > rule.above or rule.clear < rule.below:
        raise table.fault("clear", f"{rule.clear:g} is beyond the threshold {rule.threshold:g}")
    return rule


def _action(table: _Table, folder: Path) -> ActionOptions:
    kinds: dict[str, Callable[[_Table, Path], ActionOptions]] = {
        "webhook": _webhook, "command": _command, "kubernetes-job": _job, "log": _log,
    }  # fmt: skip
    kind = table.get("kind", _text)
    if kind not in kinds:
        raise table.fault("kind", f"'{kind}' is not one of {', '.join(kinds)}")
    action = kinds[kind](table, folder)
    table.end()
    return action


def _webhook(table: _Table, folder: Path) -> WebhookOptions:
    secret = table.get("secret_file", _text, "")
    options = WebhookOptions(
        url=table.get("url", _url),
        secret_file=folder / secret if secret else None,
        secret_env=table.get("secret_env", _text, ""),
        headers=table.get("headers", _headers, {}),
        retry=_retry(table, attempts=10, timeout_s=10.0),
    )
    if options.secret_file and options.secret_env:
        raise table.fault("secret_env", "a secret comes from a file or from the environment, not from both")
    return options


def _command(table: _Table, folder: Path) -> CommandOptions:  # noqa: ARG001  (all kinds look the same)
    argv = table.get("argv", _texts)
    if not argv:
        raise table.fault("argv", "needs at least the program")
    return CommandOptions(argv=argv, retry=_retry(table, attempts=1, timeout_s=3600.0))


def _job(table: _Table, folder: Path) -> JobOptions:
    output = table.get("output", _text)
    return JobOptions(
        template=folder / table.get("template", _text),
        output=None if output == "-" else folder / output,
        retry=_retry(table, attempts=3, timeout_s=10.0),
    )


def _log(table: _Table, folder: Path) -> LogOptions:  # noqa: ARG001  (as above)
    return LogOptions(retry=_retry(table, attempts=1, timeout_s=10.0))


def _retry(table: _Table, *, attempts: int, timeout_s: float) -> RetryOptions:
    return RetryOptions(
        attempts=table.get("attempts", _count, attempts),
        timeout_s=table.get("timeout", _duration, timeout_s),
        first_wait_s=table.get("first_wait", _duration, 1.0),
        max_wait_s=table.get("max_wait", _duration, 300.0),
    )


# ---- values; each raises ValueError


def _text(value: Any) -> str:  # noqa: ANN401  (whatever the file has)
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a text, not {value!r}")
    return value


def _name(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"must be letters, digits, '.', '_' and '-', at most 63, not {value!r}")
    return value


def _texts(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    if not isinstance(value, list):
        raise ValueError(f"must be a list of texts, not {value!r}")  # noqa: TRY004  (one kind of error for all)
    return tuple(map(_text, value))


def _number(value: Any) -> float:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"must be a number, not {value!r}")
    return float(value)


def _count(value: Any) -> int:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be a whole number from 1, not {value!r}")
    return value


def _flag(value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")  # noqa: TRY004
    return value


def _duration(value: Any) -> float:  # noqa: ANN401
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None or float(found[1]) == 0.0:
        raise ValueError(f"must be a time like '500ms', '30s', '10m', '6h' or '1d', not {value!r}")
    return float(found[1]) * _UNITS[found[2]]


def _aggregate(value: Any) -> Aggregate:  # noqa: ANN401
    try:
        return Aggregate(value)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(Aggregate)}, not {value!r}") from None


def _url(value: Any) -> str:  # noqa: ANN401
    if not re.match(r"https?://[^/\s]+", _text(value)):
        raise ValueError(f"must be an http:// or https:// URL, not {value!r}")
    return str(value)


def _headers(value: Any) -> dict[str, str]:  # noqa: ANN401
    return {name: _text(each) for name, each in _table(value).items()}


def _table(value: Any) -> Mapping[str, Any]:  # noqa: ANN401
    if not isinstance(value, dict):
        raise ValueError(f"must be a table, not {value!r}")  # noqa: TRY004
    return value


def _tables(value: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401
    if not isinstance(value, list):
        raise ValueError(f"must be tables, each after its own [[...]], not {value!r}")  # noqa: TRY004
    return [_table(each) for each in value]


def _table_at(value: Any, place: str) -> Mapping[str, Any]:  # noqa: ANN401
    try:
        return _table(value)
    except ValueError as error:
        raise BadTriggers(f"{place}: {error}") from error
