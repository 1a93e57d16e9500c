"""Whatever arrives: the protocol core neither raises nor grows, and honest peers get every byte, in order."""

from __future__ import annotations

from typing import Any

import hpack as reference
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.transport.http2 import frames
from server.transport.http2.errors import ErrorCode
from server.transport.http2.hpack import Decoder, HpackError
from server.transport.http2.huffman import Huffman
from server.transport.http2.limits import Limits
from server.transport.http2.messages import Assembler
from server.transport.http2.requests import HeadReader, MalformedRequest, parse_head
from server.transport.http2.sender import OK_BLOCK, RESPONSE_BLOCK
from tests.support.http2_peer import GRPC, Peer, message

_HUFFMAN = Huffman()
_ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)

names = st.sampled_from(["a", "b-bin", "x-trace", "te", "grpc-timeout", "content-type", ":path", "Upper", "user-agent"])
known_values = ["trailers", "1S", "20m", "soon", "application/grpc", "", " edge", "AAEC"]
values = st.one_of(st.sampled_from(known_values), st.text("abc012", max_size=8))
pairs = st.tuples(names, values)


@given(st.binary(max_size=200))
def test_huffman_strings_come_back(data: bytes) -> None:
    assert _HUFFMAN.decode(_ENCODER.encode(data)) == data


@given(st.binary(max_size=40))
def test_arbitrary_huffman_input_is_decoded_or_refused(data: bytes) -> None:
    try:
        decoded = _HUFFMAN.decode(data)
    except ValueError:
        return
    assert _ENCODER.encode(decoded) == data


@given(
    st.lists(st.tuples(st.lists(pairs, max_size=12), st.booleans(), st.sampled_from([None, 0, 64, 4096])), max_size=8)
)
def test_hpack_agrees_with_another_implementation(blocks: list[Any]) -> None:
    encoder, decoder = reference.Encoder(), Decoder(max_list_bytes=1 << 20)
    for fields, huffman, table_size in blocks:
        if table_size is not None:
            encoder.header_table_size = table_size
        block = encoder.encode(fields, huffman=huffman)
        assert decoder.decode(block) == [(name.encode(), value.encode()) for name, value in fields]


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_arbitrary_blocks_are_decoded_or_refused(blocks: list[bytes]) -> None:
    decoder = Decoder(max_list_bytes=1000)
    for block in blocks:
        try:
            fields = decoder.decode(block)
        except HpackError:
            return
        assert sum(len(name) + len(value) + 32 for name, value in fields) <= 1000


def _outcome(read: Any) -> Any:
    try:
        return read()
    except MalformedRequest:
        return "malformed"


@given(st.lists(st.tuples(st.lists(pairs, max_size=4), st.booleans(), st.integers(0, 6)), max_size=12))
def test_remembered_heads_and_templates_change_nothing(requests: list[Any]) -> None:
    encoder, reader = reference.Encoder(), HeadReader(max_list_bytes=1 << 20)
    for extra, spelt_out, position in requests:
        wrap = reference.NeverIndexedHeaderTuple if spelt_out else reference.HeaderTuple
        fields = [*GRPC[:position], *(wrap(*pair) for pair in extra), *GRPC[position:]]
        plain = [(name.encode(), value.encode()) for name, value in fields]
        block = encoder.encode(fields)
        assert _outcome(lambda block=block: reader.read(block)) == _outcome(lambda plain=plain: parse_head(plain))


@given(st.lists(st.binary(max_size=50), max_size=6), st.data())
def test_messages_survive_any_cut(messages: list[bytes], data: st.DataObject) -> None:
    body = b"".join(map(message, messages))
    assembler = Assembler(1000, b"")
    found = []
    while body:
        cut = data.draw(st.integers(1, len(body)))
        found += assembler.feed(memoryview(body[:cut]))
        body = body[cut:]
    assert found == messages
    assert not assembler.inside


frame_kinds = st.one_of(st.integers(0, 10), st.just(0x99))
stream_ids = st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1))
payloads = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"\x00\x00\x00\x01", bytes(4), b"\x7f\xff\xff\xff", bytes(8), bytes(300)]),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2**32 - 1)), max_size=3).map(
        lambda values: frames.settings(values)[9:]
    ),
    st.just(reference.Encoder().encode(GRPC)),
)
hostile_frames = st.builds(
    lambda kind, flags, stream_id, payload: frames.head(len(payload), kind, flags, stream_id) + payload,
    frame_kinds, st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]), stream_ids, payloads,
)  # fmt: skip

SMALL = Limits(
    max_concurrent_streams=4, max_frame_size=16_384, stream_window_bytes=65_535, connection_window_bytes=65_535,
    max_header_list_bytes=1000, control_burst=30, reset_burst=10,
)  # fmt: skip


def _check_bounds(peer: Peer) -> None:
    connection = peer.connection
    assert len(connection.streams) <= 4
    assert connection._block is None or len(connection._block) <= SMALL.max_block_bytes
    assert len(peer._pending) <= SMALL.max_block_bytes + 9
    assert connection.sender.window <= frames.MAX_WINDOW
    assert all(stream.send_window <= frames.MAX_WINDOW for stream in connection.streams.values())
    if connection.closed:
        assert not connection.streams
        assert all(body.reset_code is not None for body in peer.bodies.values() if body.stream.queued_bytes)


@settings(max_examples=300)
@given(st.lists(st.one_of(hostile_frames, st.binary(max_size=30)), max_size=60), st.booleans())
def test_no_bytes_make_it_raise_or_grow(pieces: list[bytes], answer: bool) -> None:
    peer = Peer(SMALL)
    for piece in pieces:
        peer.write(piece)
        if answer:
            for body in list(peer.bodies.values()):
                if body.ended and body.stream.id in peer.connection.streams and not body.stream.queued_bytes:
                    peer.connection.sender.respond(body.stream, bytes(100))
        peer.connection.sender.take()
        _check_bounds(peer)


@given(st.lists(hostile_frames, max_size=15), st.data())
def test_how_bytes_are_cut_makes_no_difference(pieces: list[bytes], data: st.DataObject) -> None:
    whole, cut = Peer(SMALL), Peer(SMALL)
    stream = b"".join(pieces)
    whole.write(stream)
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        cut.write(stream[:size])
        stream = stream[size:]
    assert {i: (b.head, bytes(b.data), b.ended, b.reset_code) for i, b in whole.bodies.items()} == {
        i: (b.head, bytes(b.data), b.ended, b.reset_code) for i, b in cut.bodies.items()
    }
    assert whole.read() == cut.read()


class HonestPeer(RuleBasedStateMachine):
    """A client that keeps the rules, with windows of its own that the server must respect."""

    def __init__(self) -> None:
        super().__init__()
        self.peer = Peer(Limits(connection_window_bytes=100_000, stream_window_bytes=70_000))
        self.next_id = 1
        self.sent: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.expected: dict[int, bytes] = {}
        self.received: dict[int, bytearray] = {}
        self.finished: set[int] = set()
        self.connection_window = 65_535
        self.initial_window = 65_535
        self.windows: dict[int, int] = {}

    def _read(self) -> None:
        for frame in self.peer.read():
            if frame.kind == frames.DATA:
                self.connection_window -= len(frame.payload)
                self.windows[frame.stream_id] -= len(frame.payload)
                assert self.connection_window >= 0
                assert self.windows[frame.stream_id] >= 0
                self.received[frame.stream_id] += frame.payload
            if frame.kind == frames.HEADERS and frame.flags & frames.END_STREAM:
                self.finished.add(frame.stream_id)
            assert frame.kind != frames.GOAWAY

    def _open(self) -> list[int]:
        return [i for i in self.sent if i not in self.ended]

    @precondition(lambda self: len(self.sent) < 30)
    @rule()
    def opens(self) -> None:
        self.peer.request(self.next_id)
        self.sent[self.next_id] = bytearray()
        self.received[self.next_id] = bytearray()
        self.windows[self.next_id] = self.initial_window
        self.next_id += 2

    @precondition(lambda self: self._open())
    @rule(data=st.data(), size=st.integers(0, 300), end=st.booleans(), padding=st.integers(0, 9))
    def sends(self, data: st.DataObject, size: int, end: bool, padding: int) -> None:
        stream_id = data.draw(st.sampled_from(self._open()))
        payload = bytes([stream_id % 251]) * size
        framed = bytes([padding]) + payload + bytes(padding) if padding else payload
        flags = (frames.PADDED if padding else 0) | (frames.END_STREAM if end else 0)
        self.peer.frame(frames.DATA, flags, stream_id, framed)
        self.sent[stream_id] += payload
        if end:
            self.ended.add(stream_id)

    @precondition(lambda self: self.ended - self.expected.keys())
    @rule(data=st.data(), size=st.sampled_from([0, 10, 20_000, 150_000]))
    def is_answered(self, data: st.DataObject, size: int) -> None:
        stream_id = data.draw(st.sampled_from(sorted(self.ended - self.expected.keys())))
        reply = bytes([stream_id % 251]) * size
        self.peer.connection.sender.respond(self.peer.bodies[stream_id].stream, reply)
        self.expected[stream_id] = message(reply)

    @rule(size=st.integers(1, 50_000))
    def opens_the_connection_window(self, size: int) -> None:
        self._read()
        self.connection_window += size
        self.peer.write(frames.window_update(0, size))

    @precondition(lambda self: self.expected.keys() - self.finished)
    @rule(data=st.data(), size=st.integers(1, 50_000))
    def opens_a_stream_window(self, data: st.DataObject, size: int) -> None:
        self._read()
        stream_id = data.draw(st.sampled_from(sorted(self.windows)))
        self.windows[stream_id] += size
        self.peer.write(frames.window_update(stream_id, size))

    @rule(size=st.sampled_from([0, 1, 100, 65_535, 200_000]))
    def changes_the_initial_window(self, size: int) -> None:
        self._read()
        for stream_id in self.windows:
            self.windows[stream_id] += size - self.initial_window
        self.initial_window = size
        self.peer.write(frames.settings([(frames.INITIAL_WINDOW_SIZE, size)]))

    @invariant()
    def bodies_arrive(self) -> None:
        for stream_id, body in self.sent.items():
            assert self.peer.bodies[stream_id].data == body
            assert self.peer.bodies[stream_id].ended is (stream_id in self.ended)

    def teardown(self) -> None:
        """However windows were opened and closed: once they are wide, every reply arrives whole."""
        self._read()
        self.connection_window += 10**8
        self.peer.write(frames.window_update(0, 10**8))
        for stream_id in sorted(self.windows):
            if stream_id in self.peer.connection.streams:
                self.windows[stream_id] += 10**8
                self.peer.write(frames.window_update(stream_id, 10**8))
        while self.peer.connection.sender.queued_bytes:
            self._read()
            self.peer.connection.sender.pump()
        self._read()
        for stream_id, reply in self.expected.items():
            assert self.received[stream_id] == reply
            assert stream_id in self.finished
        assert set(self.peer.connection.streams) == self.sent.keys() - self.expected.keys()


TestHonestPeer = HonestPeer.TestCase
TestHonestPeer.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(st.sampled_from(["open", "reset", "respond", "lose"]), max_size=40))
def test_each_stream_ends_exactly_once(steps: list[str]) -> None:
    peer = Peer()
    next_id = 1
    for step in steps:
        alive = sorted(peer.connection.streams)
        if step == "open":
            peer.request(next_id, end_stream=True)
            next_id += 2
        elif step == "reset" and alive:
            peer.write(frames.rst_stream(alive[0], ErrorCode.CANCEL))
        elif step == "respond" and alive:
            peer.connection.sender.headers(peer.bodies[alive[-1]].stream, RESPONSE_BLOCK)
            peer.connection.sender.end(peer.bodies[alive[-1]].stream, OK_BLOCK)
        elif step == "lose":
            peer.connection.lost()
    ends = [f for f in peer.read() if f.kind == frames.HEADERS and f.flags & frames.END_STREAM]
    resets = [body for body in peer.bodies.values() if body.reset_code is not None]
    assert len(ends) + len(resets) + len(peer.connection.streams) == len(peer.bodies)
