"""What targets that call RPCs share. The first byte of an input names the method, the rest is its request."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from random import Random
from typing import Any, Final, NoReturn

from google.protobuf.message import DecodeError

from tests.fuzz.mutate import mutate_bytes, mutate_message
from tests.support.methods import Method


class Aborted(Exception):
    """What `context.abort` raises."""

    def __init__(self, code: Any, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


class Context:
    """A caller without a deadline."""

    def time_remaining(self) -> float | None:
        return None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        assert details.isprintable() or "\\" not in details or details, "a status without a text"
        raise Aborted(code, details)


class Faults(logging.Handler):
    """Keeps what is logged as an error, such as `a call failed in the server` for what nobody foresaw."""

    def __init__(self, *loggers: str) -> None:
        super().__init__(logging.ERROR)
        self._found: list[BaseException | str] = []
        for name in loggers:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._found.append(error or record.getMessage())

    def check(self, what: str) -> None:
        """Raise AssertionError if there was one since the last time."""
        found, self._found = self._found, []
        if found:
            raise AssertionError(f"{what}: {found}") from (found[0] if isinstance(found[0], Exception) else None)


class Calls:
    """Inputs as calls of these methods; `words` are texts that mean something."""

    def __init__(self, methods: Sequence[Method], words: Sequence[str]) -> None:
        self._methods = methods
        self._mutators: Final[dict[str, Callable[[bytes, Random], bytes]]] = {
            method.path: mutate_message(method.request_type, words) for method in methods
        }

    def read(self, data: bytes) -> tuple[Method, Any] | None:
        """Method and request; None for an input that is none."""
        if not data:
            return None
        method = self._of(data)
        try:
            return method, method.handler.request_deserializer(data[1:])
        except DecodeError:
            return None

    def mutate(self, data: bytes, random: Random) -> bytes:
        """Another method now and then; else another request of the same."""
        if not data or random.random() < 0.1:
            return bytes([random.randrange(len(self._methods))]) + mutate_bytes(data[1:], random)
        return data[:1] + self._mutators[self._of(data).path](data[1:], random)

    def seeds(self, *requests: tuple[str, Any]) -> list[bytes]:
        """An empty request of each method, and these: the end of a method's path, and the request."""
        found = [bytes([index]) for index in range(len(self._methods))]
        for name, request in requests:
            index = next(i for i, method in enumerate(self._methods) if method.path.endswith(name))
            found.append(bytes([index]) + request.SerializeToString())
        return found

    def _of(self, data: bytes) -> Method:
        return self._methods[data[0] % len(self._methods)]


async def one(request: Any) -> AsyncIterator[Any]:
    """A stream of one message."""
    yield request
