from __future__ import annotations

import pytest

from server.transport.http2 import frames
from server.transport.http2.errors import ErrorCode
from server.transport.http2.frames import DATA, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE
from server.transport.http2.limits import Limits
from server.transport.http2.sender import OK_BLOCK, RESPONSE_BLOCK
from tests.support.http2_peer import GRPC, Peer, message


def kinds(peer: Peer) -> list[int]:
    return [frame.kind for frame in peer.read()]


def test_greets_with_its_settings_and_a_large_window() -> None:
    peer = Peer(Limits(connection_window_bytes=1_000_000, max_concurrent_streams=7), greet=False)
    settings, window = peer.read()
    assert settings.kind == SETTINGS
    assert (frames.MAX_CONCURRENT_STREAMS, 7) in frames.parse_settings(memoryview(settings.payload))
    assert window.kind == WINDOW_UPDATE
    assert int.from_bytes(window.payload, "big") == 1_000_000 - 65_535


def test_a_request_reaches_its_receiver_byte_by_byte() -> None:
    whole, slow = Peer(), Peer()
    block = whole.block(GRPC, ("x-key", "value"))
    request = frames.headers(1, block, end_stream=False, max_frame_size=16_384)
    body_frame = message(b"hello")
    request += frames.head(len(body_frame), DATA, frames.END_STREAM, 1) + body_frame
    whole.write(request)
    for octet in request:
        slow.write(bytes([octet]))
    for peer in (whole, slow):
        body = peer.bodies[1]
        assert body.head.path == b"/test/echo"
        assert body.head.metadata == (("x-key", "value"),)
        assert body.data == message(b"hello")
        assert body.ended


def test_a_unary_answer_is_three_frames_and_closes_the_stream() -> None:
    peer = Peer()
    peer.request(1)
    peer.data(1, message(b"hello"), end_stream=True)
    peer.connection.sender.respond(peer.bodies[1].stream, b"bye")
    head, data, trailers = peer.read()
    assert (head.kind, head.payload) == (HEADERS, RESPONSE_BLOCK)
    assert (data.kind, data.payload) == (DATA, message(b"bye"))
    assert (trailers.kind, trailers.payload) == (HEADERS, OK_BLOCK)
    assert trailers.flags & frames.END_STREAM
    assert peer.connection.streams == {}
    decoded = dict(peer.decoder.decode(head.payload) + peer.decoder.decode(trailers.payload))
    assert decoded == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}


def test_payload_waits_for_the_stream_window_and_trailers_for_the_payload() -> None:
    peer = Peer()
    peer.write(frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]))
    peer.request(1, end_stream=True)
    stream = peer.bodies[1].stream
    peer.read()
    peer.connection.sender.headers(stream, RESPONSE_BLOCK)
    peer.connection.sender.message(stream, 0, b"hello")
    peer.connection.sender.end(stream, OK_BLOCK)
    assert [(f.kind, f.payload) for f in peer.read()] == [(HEADERS, RESPONSE_BLOCK)]
    assert peer.connection.sender.queued_bytes == 10
    peer.write(frames.window_update(1, 0x7FFF))
    data, trailers = peer.read()
    assert data.payload == message(b"hello")
    assert trailers.flags & frames.END_STREAM
    assert peer.connection.sender.queued_bytes == 0


def test_payload_is_cut_by_the_initial_window() -> None:
    peer = Peer()
    peer.write(frames.settings([(frames.INITIAL_WINDOW_SIZE, 4)]))
    peer.request(1, end_stream=True)
    peer.read()
    sender = peer.connection.sender
    sender.payload(peer.bodies[1].stream, b"0123456789")
    assert [f.payload for f in peer.read()] == [b"0123"]
    peer.write(frames.settings([(frames.INITIAL_WINDOW_SIZE, 1)]))
    peer.write(frames.window_update(1, 5))  # the window was at -3
    assert b"".join(f.payload for f in peer.read() if f.kind == DATA) == b"45"


def test_a_stream_whose_window_shrank_while_it_waited_sends_nothing() -> None:
    peer = Peer()
    peer.request(1, end_stream=True)
    peer.read()
    peer.connection.sender.payload(peer.bodies[1].stream, bytes(70_000))  # waits for the connection's window
    peer.write(frames.window_update(1, 1000))
    peer.read()
    peer.write(frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]))
    peer.write(frames.window_update(0, 1000))
    assert [f.kind for f in peer.read()] == [SETTINGS]


def test_streams_take_turns_at_the_connection_window() -> None:
    peer = Peer()
    for stream_id in (1, 3):
        peer.request(stream_id, end_stream=True)
    peer.read()
    for stream_id in (1, 3):
        peer.connection.sender.payload(peer.bodies[stream_id].stream, bytes(60_000))
    assert sum(len(f.payload) for f in peer.read()) == 65_535
    peer.write(frames.window_update(0, 32_768))
    assert {f.stream_id for f in peer.read()} == {3}
    assert peer.connection.sender.queued_bytes == 120_000 - 65_535 - 32_768


def test_a_full_socket_holds_payload_back() -> None:
    peer = Peer()
    peer.request(1, end_stream=True)
    peer.read()
    peer.connection.sender.cork()
    peer.connection.sender.payload(peer.bodies[1].stream, b"later")
    assert peer.read() == []
    peer.connection.sender.uncork()
    assert [f.payload for f in peer.read()] == [b"later"]


def test_large_bodies_land_where_the_receiver_wants_them() -> None:
    peer = Peer()
    peer.request(1)
    body = peer.bodies[1]
    body.room = bytearray(100)
    peer.write(frames.head(10, DATA, frames.END_STREAM, 1) + b"01234")
    landing = peer.connection.landing()
    assert landing is not None
    landing[:5] = b"56789"
    peer.connection.landed(5)
    assert (body.data, body.ended) == (b"0123456789", True)
    assert peer.connection.landing() is None


def test_a_reset_reaches_the_receiver_and_frees_the_stream() -> None:
    peer = Peer()
    peer.request(1)
    peer.write(frames.rst_stream(1, ErrorCode.CANCEL))
    assert peer.bodies[1].reset_code == ErrorCode.CANCEL
    assert peer.connection.streams == {}
    assert peer.connection.resets == {ErrorCode.CANCEL: 1}


def test_what_was_under_way_on_a_stream_that_we_reset_is_ignored() -> None:
    peer = Peer()
    peer.request(1)
    peer.connection.reset(peer.bodies[1].stream, ErrorCode.CANCEL)
    assert kinds(peer) == [RST_STREAM]
    peer.data(1, b"under way")
    peer.write(frames.headers(1, peer.block((("late", "trailer"),)), end_stream=True, max_frame_size=16_384))
    assert kinds(peer) == []
    assert not peer.connection.closed


def test_a_client_that_goes_on_sending_after_its_answer_is_told_to_stop() -> None:
    peer = Peer()
    for stream_id in (1, 3, 5):
        peer.request(stream_id)
        peer.connection.sender.headers(peer.bodies[stream_id].stream, RESPONSE_BLOCK, end_stream=True)
    heads = peer.read()
    assert [head.kind for head in heads] == [frames.HEADERS] * 3
    assert all(head.flags & frames.END_STREAM for head in heads)
    peer.data(1, b"the last", end_stream=True)
    assert peer.read() == []
    peer.data(3, b"and on")
    peer.write(frames.head(100, frames.DATA, 0, 5) + b"an unfinished frame")
    resets = peer.read()
    assert [(reset.kind, reset.stream_id, reset.payload) for reset in resets] == [
        (RST_STREAM, stream_id, bytes(4)) for stream_id in (3, 5)
    ]
    assert not peer.connection.streams


def test_streams_beyond_the_limit_are_refused() -> None:
    peer = Peer(Limits(max_concurrent_streams=2))
    for stream_id in (1, 3, 5):
        peer.request(stream_id)
    (refusal,) = peer.read()
    assert (refusal.kind, refusal.stream_id) == (RST_STREAM, 5)
    assert int.from_bytes(refusal.payload, "big") == ErrorCode.REFUSED_STREAM


def test_drain_names_the_last_stream_once_the_client_knows() -> None:
    peer = Peer()
    peer.request(1)
    peer.connection.drain()
    farewell, ping = peer.read()
    assert (farewell.kind, farewell.payload[:4]) == (GOAWAY, b"\x7f\xff\xff\xff")
    peer.request(3)  # sent before the client knew
    peer.frame(PING, frames.ACK, 0, ping.payload)
    (final,) = peer.read()
    assert (final.kind, final.payload[:4]) == (GOAWAY, (3).to_bytes(4, "big"))
    peer.request(5)  # after: ignored
    assert set(peer.bodies) == {1, 3}
    for stream_id in (1, 3):
        assert not peer.was_emptied
        peer.data(stream_id, message(b""), end_stream=True)
        peer.connection.sender.respond(peer.bodies[stream_id].stream, b"")
    assert peer.was_emptied


def test_a_drained_connection_without_calls_is_empty_at_once() -> None:
    peer = Peer()
    peer.connection.drain()
    peer.connection.finish_drain()
    assert peer.was_emptied


def test_the_connection_window_is_given_back_as_bytes_arrive() -> None:
    peer = Peer(Limits(connection_window_bytes=100_000, stream_window_bytes=100_000))
    peer.request(1)
    peer.data(1, bytes(49_000))
    assert kinds(peer) == []
    peer.data(1, bytes(2_000))
    (update,) = peer.read()
    assert (update.kind, update.stream_id, int.from_bytes(update.payload, "big")) == (WINDOW_UPDATE, 0, 51_000)


def test_losing_the_socket_resets_every_call() -> None:
    peer = Peer()
    for stream_id in (1, 3):
        peer.request(stream_id)
    peer.connection.lost()
    assert [body.reset_code for body in peer.bodies.values()] == [ErrorCode.CANCEL, ErrorCode.CANCEL]


@pytest.mark.parametrize(
    ("kind", "flags", "stream_id", "payload", "code"),
    [
        (DATA, 0, 0, b"x", ErrorCode.PROTOCOL_ERROR),
        (DATA, 0, 9, b"x", ErrorCode.PROTOCOL_ERROR),
        (DATA, frames.PADDED, 1, b"", ErrorCode.FRAME_SIZE_ERROR),
        (DATA, frames.PADDED, 1, b"\x05abc", ErrorCode.PROTOCOL_ERROR),
        (HEADERS, frames.END_HEADERS, 0, b"\x82", ErrorCode.PROTOCOL_ERROR),
        (HEADERS, frames.END_HEADERS, 2, b"\x82", ErrorCode.PROTOCOL_ERROR),
        (HEADERS, frames.END_HEADERS, 3, b"\xff\xff\xff\xff\xff\xff", ErrorCode.COMPRESSION_ERROR),
        (HEADERS, frames.END_HEADERS | frames.PADDED, 3, b"", ErrorCode.FRAME_SIZE_ERROR),
        (HEADERS, frames.END_HEADERS | frames.PADDED, 3, b"\x09a", ErrorCode.PROTOCOL_ERROR),
        (HEADERS, frames.END_HEADERS | frames.PRIORITISED, 3, b"abc", ErrorCode.FRAME_SIZE_ERROR),
        (RST_STREAM, 0, 1, b"xyz", ErrorCode.FRAME_SIZE_ERROR),
        (RST_STREAM, 0, 9, bytes(4), ErrorCode.PROTOCOL_ERROR),
        (SETTINGS, 0, 1, b"", ErrorCode.PROTOCOL_ERROR),
        (SETTINGS, 0, 0, b"12345", ErrorCode.FRAME_SIZE_ERROR),
        (SETTINGS, frames.ACK, 0, bytes(6), ErrorCode.FRAME_SIZE_ERROR),
        (SETTINGS, 0, 0, b"\x00\x02\x00\x00\x00\x02", ErrorCode.PROTOCOL_ERROR),
        (SETTINGS, 0, 0, b"\x00\x04\x80\x00\x00\x00", ErrorCode.FLOW_CONTROL_ERROR),
        (SETTINGS, 0, 0, b"\x00\x05\x00\x00\x00\x01", ErrorCode.PROTOCOL_ERROR),
        (frames.PUSH_PROMISE, 0, 1, bytes(4), ErrorCode.PROTOCOL_ERROR),
        (PING, 0, 1, bytes(8), ErrorCode.PROTOCOL_ERROR),
        (PING, 0, 0, bytes(7), ErrorCode.FRAME_SIZE_ERROR),
        (GOAWAY, 0, 1, bytes(8), ErrorCode.PROTOCOL_ERROR),
        (GOAWAY, 0, 0, bytes(7), ErrorCode.FRAME_SIZE_ERROR),
        (WINDOW_UPDATE, 0, 0, bytes(4), ErrorCode.PROTOCOL_ERROR),
        (WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff", ErrorCode.FLOW_CONTROL_ERROR),
        (WINDOW_UPDATE, 0, 0, bytes(3), ErrorCode.FRAME_SIZE_ERROR),
        (WINDOW_UPDATE, 0, 9, b"\x00\x00\x00\x01", ErrorCode.PROTOCOL_ERROR),
        (frames.CONTINUATION, 0, 1, b"", ErrorCode.PROTOCOL_ERROR),
        (frames.PRIORITY, 0, 0, bytes(5), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_faults_that_end_the_connection(kind: int, flags: int, stream_id: int, payload: bytes, code: ErrorCode) -> None:
    peer = Peer()
    peer.request(1)
    peer.frame(kind, flags, stream_id, payload)
    assert peer.goaway_code() == code
    assert peer.connection.closed
    assert peer.bodies[1].reset_code is not None


@pytest.mark.parametrize(
    ("kind", "flags", "payload", "code"),
    [
        (WINDOW_UPDATE, 0, bytes(4), ErrorCode.PROTOCOL_ERROR),
        (WINDOW_UPDATE, 0, b"\x7f\xff\xff\xff", ErrorCode.FLOW_CONTROL_ERROR),
        (HEADERS, frames.END_HEADERS, b"\x00\x01a\x01b", ErrorCode.PROTOCOL_ERROR),
        (HEADERS, frames.END_HEADERS | frames.END_STREAM, b"\x82", ErrorCode.PROTOCOL_ERROR),
        (frames.PRIORITY, 0, b"\x00\x00\x00\x01\x00", ErrorCode.PROTOCOL_ERROR),
        (frames.PRIORITY, 0, b"\x00\x00", ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_faults_that_end_one_stream(kind: int, flags: int, payload: bytes, code: ErrorCode) -> None:
    peer = Peer()
    peer.request(1)
    peer.request(3)
    peer.frame(kind, flags, 1, payload)
    (reset,) = peer.read()
    assert (reset.kind, reset.stream_id, int.from_bytes(reset.payload, "big")) == (RST_STREAM, 1, code)
    assert peer.bodies[1].reset_code == code
    peer.data(3, b"the neighbour goes on", end_stream=True)
    assert peer.bodies[3].ended


@pytest.mark.parametrize(
    "fields",
    [
        [(":method", "POST"), (":scheme", "http")],
        [(":method", "POST"), (":scheme", "http"), (":path", "")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":path", "/")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":status", "200")],
        [(":method", "POST"), (":scheme", "http"), ("te", "trailers"), (":path", "/")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("Upper", "x")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("connection", "close")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("te", "gzip")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("a", "b\r\nc: d")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("a", " b")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("content-length", "many")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("content-length", "1"), ("content-length", "2")],
    ],
)
def test_malformed_requests_are_reset(fields: list[tuple[str, str]]) -> None:
    peer = Peer()
    peer.write(frames.headers(1, peer.block(fields), end_stream=True, max_frame_size=16_384))
    (reset,) = peer.read()
    assert (reset.kind, int.from_bytes(reset.payload, "big")) == (RST_STREAM, ErrorCode.PROTOCOL_ERROR)
    assert peer.bodies == {}


@pytest.mark.parametrize("sent", [b"12", b"1234"])
def test_content_length_must_match(sent: bytes) -> None:
    peer = Peer()
    peer.request(1, ("content-length", "3"))
    peer.data(1, sent, end_stream=True)
    assert peer.bodies[1].reset_code == ErrorCode.PROTOCOL_ERROR


def test_a_client_of_something_else_is_told_so() -> None:
    peer = Peer(greet=False)
    peer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert peer.goaway_code() == ErrorCode.PROTOCOL_ERROR


def test_the_first_frame_must_be_settings() -> None:
    peer = Peer(greet=False)
    peer.write(frames.PREFACE + frames.ping(bytes(8), ack=False))
    assert peer.goaway_code() == ErrorCode.PROTOCOL_ERROR


def test_header_blocks_may_come_in_pieces_and_must_not_be_interrupted() -> None:
    peer = Peer()
    peer.write(frames.headers(1, peer.block(), end_stream=True, max_frame_size=10))
    assert peer.bodies[1].ended
    block = peer.block()
    peer.frame(HEADERS, 0, 3, block[:2])
    peer.frame(PING, 0, 0, bytes(8))
    assert peer.goaway_code() == ErrorCode.PROTOCOL_ERROR


def test_unknown_frames_are_ignored() -> None:
    peer = Peer()
    peer.frame(0x77, 0xFF, 5, b"an extension")
    peer.request(1)
    assert 1 in peer.bodies


def test_repr_is_a_status_line() -> None:
    peer = Peer()
    peer.request(1)
    assert repr(peer.connection) == "<Connection [open | 1 streams | 0 bytes queued]>"
    assert repr(peer.bodies[1].stream) == "<Stream 1 [open | 0 bytes queued]>"
