"""What an event sets off: a webhook, a program, the manifest of a Kubernetes Job, a line in the log.

Promise: `deliver` returns when the other side has the event, and raises NotDelivered otherwise; it keeps neither the
event loop nor more than a bounded amount of memory. Each gets the event's id, so that it can tell a repeat.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import string
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, Protocol

from server.watch.cloudevents import CONTENT_TYPE, TYPE, as_text, key_of, signature_headers
from server.watch.trigger_file import (
    ActionOptions,
    BadTriggers,
    CommandOptions,
    JobOptions,
    LogOptions,
    RetryOptions,
    TriggerOptions,
    WebhookOptions,
)
from server.watch.triggers import Event

log = logging.getLogger(__name__)

_TAIL: Final = 2000
"""Bytes of a program's output that are told when it fails."""
_END_S: Final = 5.0
"""How long a program may take to end when it is told to, before it is killed."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
_GONE: Final = 410


class NotDelivered(Exception):
    """The attempt failed; the text says why. `final`: no further one can help."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Action(Protocol):
    """One way to tell."""

    retry: RetryOptions

    async def deliver(self, event: Event) -> None:
        """Raises NotDelivered."""
        ...


def make_actions(options: TriggerOptions, threads: ThreadPoolExecutor) -> dict[str, Action]:
    """All actions by name. Raises BadTriggers for secrets and templates that are not there."""
    return {name: _make(name, action, options.source, threads) for name, action in options.actions.items()}


def _make(name: str, options: ActionOptions, source: str, threads: ThreadPoolExecutor) -> Action:
    try:
        match options:
            case WebhookOptions():
                return Webhook(options, source, threads)
            case CommandOptions():
                return Command(options, source)
            case JobOptions():
                return JobManifest(options, source)
            case LogOptions():
                return LogLine(options, source)
    except (OSError, ValueError) as error:
        raise BadTriggers(f"action.{name}: {error}") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its event."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


class Webhook:
    """POST as a CloudEvent in structured mode, signed if there is a secret. Anything but 2xx is a failure."""

    def __init__(
        self, options: WebhookOptions, source: str, threads: ThreadPoolExecutor, clock: Callable[[], float] = time.time
    ) -> None:
        self.retry = options.retry
        self._options = options
        self._source = source
        self._threads = threads
        self._clock = clock
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._secret()

    async def deliver(self, event: Event) -> None:
        """See Action.deliver."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._post, event)

    def _post(self, event: Event) -> None:
        body = as_text(event, self._source).encode()
        headers = {**self._options.headers, "Content-Type": CONTENT_TYPE, "User-Agent": "kairos"}
        try:
            if secret := self._secret():
                headers |= signature_headers(secret, event.id, int(self._clock()), body)
            request = urllib.request.Request(self._options.url, body, headers, method="POST")  # noqa: S310  (checked)
            with self._opener.open(request, timeout=self.retry.timeout_s) as response:
                response.read(_TAIL)
        except urllib.error.HTTPError as error:
            with error:
                raise NotDelivered(f"HTTP {error.code} {error.reason}", final=error.code == _GONE) from error
        except (OSError, ValueError) as error:
            raise NotDelivered(str(error) or type(error).__name__) from error

    def _secret(self) -> str:
        """Read each time, so that a new one needs no restart. Raises OSError or ValueError."""
        options = self._options
        if options.secret_file is not None:
            secret = options.secret_file.read_text(encoding="utf-8").strip()
        elif options.secret_env:
            secret = os.environ.get(options.secret_env, "")
        else:
            return ""
        if not key_of(secret):
            raise ValueError(f"the secret in {options.secret_file or options.secret_env} is empty")
        return secret


class Command:
    """Run a program with the event on its standard input and in its environment; 0 is success."""

    def __init__(self, options: CommandOptions, source: str) -> None:
        self.retry = options.retry
        self._argv = options.argv
        self._source = source

    async def deliver(self, event: Event) -> None:
        """See Action.deliver. A program that takes too long is ended, with all that it started."""
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **environment(event)}, start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise NotDelivered(str(error)) from error
        try:
            async with asyncio.timeout(self.retry.timeout_s):
                output, status = await asyncio.gather(self._converse(process, event), process.wait())
        except TimeoutError:
            raise NotDelivered(f"{self._argv[0]} still ran after {self.retry.timeout_s:g} s") from None
        finally:
            await _end(process)
        if status != 0:
            raise NotDelivered(f"{self._argv[0]} ended with {status}: {output.strip()}")

    async def _converse(self, process: asyncio.subprocess.Process, event: Event) -> str:
        """Hand over the event; the end of what the program says."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError, ConnectionResetError):  # it need not read
            process.stdin.write(as_text(event, self._source).encode())
            await process.stdin.drain()
            process.stdin.close()
        tail = b""
        while chunk := await process.stdout.read(_TAIL):
            tail = (tail + chunk)[-_TAIL:]
        return tail.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Make sure that nothing is left of a program that still runs, and of what it started."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError, TimeoutError):
        os.killpg(process.pid, signal.SIGTERM)
        async with asyncio.timeout(_END_S):
            await process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


class JobManifest:
    """Fill in the operator's template, and put it where something applies it, or on standard output.

    In the template `${event_id}`, `${rule}`, `${model}`, `${version}`, `${signal}`, `${value}` stand for parts of the
    event, `${name}` for a valid name of its Job, `${event}` for all of it as a quoted text, `$$` for a dollar sign.
    Other characters than letters, digits, `.`, `_` and `-` are `_` in all but the last.
    """

    def __init__(self, options: JobOptions, source: str) -> None:
        self.retry = options.retry
        self._template = string.Template(options.template.read_text(encoding="utf-8"))
        self._suffix = options.template.suffix or ".yaml"
        self._output = options.output
        self._source = source
        if not self._template.is_valid():
            raise ValueError(f"{options.template}: a $ that begins no placeholder; write $$ for a dollar sign")
        known = set(_placeholders(_EXAMPLE, source))
        if unknown := sorted(set(self._template.get_identifiers()) - known):
            raise ValueError(f"{options.template}: unknown ${{{unknown[0]}}}; known are {', '.join(sorted(known))}")
        if self._output is not None:
            self._output.mkdir(parents=True, exist_ok=True)

    async def deliver(self, event: Event) -> None:
        """See Action.deliver. A repeat writes the same file again."""
        try:
            await asyncio.to_thread(self._write, event)
        except OSError as error:
            raise NotDelivered(str(error)) from error

    def _write(self, event: Event) -> None:
        text = self._template.substitute(_placeholders(event, self._source))
        if self._output is None:
            sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
            sys.stdout.flush()
            return
        part = self._output / f".{event.id}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(self._output / f"{event.id}{self._suffix}")


class LogLine:
    """One warning."""

    def __init__(self, options: LogOptions, source: str) -> None:
        self.retry = options.retry
        self._source = source

    async def deliver(self, event: Event) -> None:
        """See Action.deliver."""
        log.warning("trigger %s: %s of %s:%d is %g [event %s]",
                    event.rule, event.signal, event.model, event.version, event.value, event.id)  # fmt: skip


def environment(event: Event) -> dict[str, str]:
    """The event as variables for a program."""
    return {
        "KAIROS_EVENT_ID": event.id, "KAIROS_EVENT_TYPE": TYPE, "KAIROS_RULE": event.rule,
        "KAIROS_MODEL": event.model, "KAIROS_VERSION": str(event.version), "KAIROS_SIGNAL": event.signal,
        "KAIROS_VALUE": repr(event.value),
    }  # fmt: skip


def _placeholders(event: Event, source: str) -> Mapping[str, str]:
    """Each is safe between quotes: what is not plain letters and digits becomes `_`; `event` brings its own quotes."""
    plain = {"rule": event.rule, "model": event.model, "signal": event.signal}
    name = re.sub(r"[^a-z0-9]+", "-", f"{event.rule}-{event.model}".lower()).strip("-")[:40].strip("-")
    return {
        "event_id": event.id,
        "name": f"{name or 'kairos'}-{event.id[:12]}",
        "version": str(event.version),
        "value": repr(event.value),
        "event": json.dumps(as_text(event, source)),
        **{key: _UNSAFE.sub("_", text) for key, text in plain.items()},
    }


_EXAMPLE: Final = Event(
    id="0", rule="r", model="m", version=1, episode=1, signal="s", value=0.0, threshold=0.0, samples=1, p_value=0.0,
    at=0.0,
)  # fmt: skip
