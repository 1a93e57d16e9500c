"""What became of the stream ids that are not open (RFC 9113, section 5.1.1), in bounded memory."""

from __future__ import annotations

from typing import Final

from server.transport.http2.frames import MAX_STREAM_ID

_REMEMBERED_RESETS: Final = 1024  # as many as may be open at once by default
_REMEMBERED_GAPS: Final = 32


class StreamIds:
    """The ids of one connection: a client opens odd ones, in rising order, and may skip some."""

    __slots__ = ("_gaps", "_reset_here", "accept_up_to", "last")

    def __init__(self) -> None:
        self.last = 0
        """The highest id that a client has used."""
        self.accept_up_to = MAX_STREAM_ID
        """Streams above it came after our last GOAWAY: they are ignored."""
        self._reset_here: dict[int, None] = {}
        self._gaps: list[range] = []

    def __len__(self) -> int:
        """How much is remembered."""
        return len(self._reset_here) + len(self._gaps)

    def use(self, stream_id: int) -> None:
        """A client opened this stream, or tried to."""
        if stream_id > self.last + 2:
            self._gaps.append(range(self.last + 2, stream_id, 2))
            del self._gaps[:-_REMEMBERED_GAPS]
        self.last = stream_id

    def is_idle(self, stream_id: int) -> bool:
        """Whether a stream that is not open has not been open, either."""
        return stream_id > self.last or not stream_id & 1

    def was_skipped(self, stream_id: int) -> bool:
        """Whether the id was passed over, so that it can never be used."""
        return any(stream_id in gap for gap in self._gaps)

    def note_reset(self, stream_id: int) -> None:
        """We reset this stream: what its client had under way is to be ignored."""
        self._reset_here[stream_id] = None
        if len(self._reset_here) > _REMEMBERED_RESETS:
            del self._reset_here[next(iter(self._reset_here))]

    def is_ignored(self, stream_id: int) -> bool:
        """Whether frames for this closed stream are no fault of the client's."""
        return stream_id in self._reset_here or stream_id > self.accept_up_to
