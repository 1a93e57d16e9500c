"""What the generator needs of a client, and the client that does it at little cost: own HTTP/2, one select() loop."""

from __future__ import annotations

import heapq
import math
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from loadtest.load import http2

CONNECT_S = 5.0
MOST_CONNECTIONS = 500
"""Of one process: select() takes no more, and it is used because its time-outs are finer than a millisecond."""
_AGAIN_S = 0.1
_LONGEST_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Body:
    """A request, ready to be sent."""

    path: str
    message: bytes
    """Serialised, without gRPC's prefix."""
    metadata: tuple[tuple[str, str], ...] = ()


class Client(Protocol):
    """Sends calls and says what became of them. Times are those of its own clock, in seconds."""

    def now(self) -> float: ...

    def start(self, call: int, body: int, deadline: float) -> None:
        """Begin a call with body number `body`; `deadline` is a time, infinite for none."""

    def cancel(self, call: int) -> None:
        """Give a call up; it ends as CANCELLED unless it has ended."""

    def wait(self, until: float) -> Sequence[tuple[int, int, float]]:
        """The calls that have ended: number, gRPC status code, time. Returns at `until` if none has."""
        ...

    def close(self) -> None: ...


class Link:
    """A socket and the connection on it. It is opened anew when it was lost."""

    def __init__(self, address: str, ended: http2.Ended) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._callback = ended
        self._retry_at = -math.inf
        self.out = b""
        """What the socket had no room for."""
        self.open()

    def open(self) -> None:
        """Connect, and wait for the server's settings. OSError where that fails."""
        self.connection = http2.Connection(self._callback)
        self.socket = socket.create_connection((self._host.strip("[]"), self._port), CONNECT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.out = b""
        try:
            self._greet()
        except OSError:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def _greet(self) -> None:
        self.socket.sendall(self.connection.take())
        while not self.connection.greeted:
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError(f"{self._host}:{self._port} closed the connection; does it speak gRPC?")
            self.connection.receive(data)

    def usable(self, now: float) -> bool:
        """Whether calls can be started; a lost connection is opened again, not more often than ten times a second."""
        if not self.connection.closing:
            return True
        if now < self._retry_at or self.connection.in_flight:
            return False
        self._retry_at = now + _AGAIN_S
        self.socket.close()
        try:
            self.open()
        except OSError:
            self.connection.closing = True
            return False
        return True

    @property
    def idle_and_lost(self) -> bool:
        """Nothing more can come."""
        return self.connection.closing and not self.connection.in_flight

    def write(self) -> None:
        """Send what there is, as far as the socket takes it."""
        self.out += self.connection.take()
        if self.out:
            try:
                sent = self.socket.send(self.out)
            except BlockingIOError:
                return
            except OSError:
                self.connection.lost()
                self.out = b""
                return
            self.out = self.out[sent:]

    def read(self) -> None:
        """Take what has come."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.connection.receive(data)
        else:
            self.connection.lost()


class Http2Client:
    """Calls over several connections in turn. Deadlines are sent, and also kept on this side, as gRPC clients do."""

    def __init__(self, address: str, bodies: Sequence[Body], connections: int = 1) -> None:
        self._ended: list[tuple[int, int, float]] = []
        self._links = [Link(address, self._end) for _ in range(connections)]
        self._heads = [http2.head_of(body.path, address, body.metadata) for body in bodies]
        self._messages = [b"\0" + len(body.message).to_bytes(4, "big") + body.message for body in bodies]
        self._where: dict[int, tuple[Link, float]] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._turn = 0
        self._unwritten: set[Link] = set()

    def now(self) -> float:
        return time.monotonic()

    def _end(self, call: int, code: int) -> None:
        now = time.monotonic()
        _, deadline = self._where.pop(call)
        if code == http2.CANCELLED and now >= deadline:  # the server's clock was the quicker one
            code = http2.DEADLINE_EXCEEDED
        self._ended.append((call, code, now))

    def start(self, call: int, body: int, deadline: float) -> None:
        """Begin a call on the next connection."""
        now = time.monotonic()
        left = None if deadline == math.inf else deadline - now
        if left is not None and left <= 0.0:
            self._ended.append((call, http2.DEADLINE_EXCEEDED, now))
            return
        for _ in self._links:
            link = self._links[self._turn % len(self._links)]
            self._turn += 1
            if link.usable(now):
                break
        else:
            self._ended.append((call, http2.UNAVAILABLE, now))
            return
        self._where[call] = link, deadline
        self._unwritten.add(link)
        if left is not None:
            heapq.heappush(self._deadlines, (deadline, call))
        link.connection.start(call, self._heads[body], self._messages[body], left)

    def cancel(self, call: int) -> None:
        """Give a call up."""
        self._give_up(call, http2.CANCELLED)

    def _give_up(self, call: int, code: int) -> None:
        if call in self._where:
            link, _ = self._where[call]
            self._unwritten.add(link)
            link.connection.cancel(call, code)

    def wait(self, until: float) -> Sequence[tuple[int, int, float]]:
        """Write, then read until a call has ended or it is `until`."""
        while True:
            self._flush()
            now = time.monotonic()
            next_deadline = self._deadlines[0][0] if self._deadlines else math.inf
            self._pump(0.0 if self._ended else max(0.0, min(until, next_deadline, now + _LONGEST_WAIT_S) - now))
            now = time.monotonic()
            while self._deadlines and self._deadlines[0][0] <= now:
                self._give_up(heapq.heappop(self._deadlines)[1], http2.DEADLINE_EXCEEDED)
            if self._ended or now >= until:
                ended, self._ended = self._ended, []
                return ended

    def _flush(self) -> None:
        for link in self._unwritten:
            link.write()
        self._unwritten = {link for link in self._unwritten if link.out}

    def _pump(self, timeout: float) -> None:
        """Wait at most that long for something to read or for room to write, and read it."""
        sockets = {link.socket: link for link in self._links if not link.idle_and_lost}
        writers = [link.socket for link in self._unwritten if link.out]
        readable, _, _ = select.select(list(sockets), writers, [], timeout)
        for each in readable:
            link = sockets[each]
            link.read()
            self._unwritten.add(link)

    def close(self) -> None:
        """Close all connections; what is in flight is forgotten."""
        for link in self._links:
            link.socket.close()
