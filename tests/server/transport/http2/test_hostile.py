"""What a hostile peer can make the protocol core do: each class of HTTP/2 attack, and what ends it.

docs/transport.md lists the classes with their CVEs and names these tests.
"""

from __future__ import annotations

import itertools

import pytest

from server.transport.http2 import frames
from server.transport.http2.calm import PingLimits
from server.transport.http2.errors import ErrorCode
from server.transport.http2.frames import CONTINUATION, DATA, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS
from server.transport.http2.limits import Limits
from server.transport.http2.sender import OK_BLOCK, RESPONSE_BLOCK
from tests.support.http2_peer import Peer, message

PATIENCE = 20_000
"""Far more frames than any of these attacks may have answered."""


def attack(peer: Peer, *bites: bytes) -> int:
    """Send the bites again and again; how often until the server ended the connection."""
    for count in range(PATIENCE):
        peer.write(bites[count % len(bites)])
        if peer.connection.closed:
            return count
        peer.connection.sender.take()
    pytest.fail("the server never lost its patience")


def ended_calmly(peer: Peer) -> bool:
    return peer.connection.fault is not None and peer.connection.fault.code is ErrorCode.ENHANCE_YOUR_CALM


def test_rapid_reset() -> None:
    peer = Peer(Limits(reset_burst=100))
    for stream_id in range(1, 2 * PATIENCE, 2):
        if peer.connection.closed:
            break
        peer.request(stream_id)
        peer.write(frames.rst_stream(stream_id, ErrorCode.CANCEL))
    assert len(peer.bodies) == 101
    assert ended_calmly(peer)
    assert peer.goaway_code() == ErrorCode.ENHANCE_YOUR_CALM


def test_a_client_that_cancels_half_of_its_calls_is_no_attacker() -> None:
    peer = Peer(Limits(reset_burst=100))
    for stream_id in range(1, 4000, 4):
        peer.request(stream_id)
        peer.write(frames.rst_stream(stream_id, ErrorCode.CANCEL))
        peer.request(stream_id + 2, end_stream=True)
        peer.connection.sender.respond(peer.bodies[stream_id + 2].stream, b"")
    assert not peer.connection.closed


@pytest.mark.parametrize(
    ("timeout", "after_s", "calm"),
    [("100m", 0.05, True), ("100m", 0.04, False), ("9m", 0.009, False), ("", 0.05, False)],
)
def test_calls_given_up_near_their_deadline_are_no_attack(timeout: str, after_s: float, *, calm: bool) -> None:
    peer = Peer(Limits(reset_burst=100, reset_per_s=0.0))
    extra = (("grpc-timeout", timeout),) if timeout else ()
    for stream_id in range(1, 1001, 2):
        if peer.connection.closed:
            break
        peer.request(stream_id, *extra)
        peer.now += after_s
        peer.write(frames.rst_stream(stream_id, ErrorCode.CANCEL))
    assert peer.connection.closed is not calm


def test_cancelling_slowly_is_no_attack() -> None:
    peer = Peer(Limits(reset_burst=10, reset_per_s=5))
    for stream_id in range(1, 400, 2):
        peer.now += 0.25
        peer.request(stream_id)
        peer.write(frames.rst_stream(stream_id, ErrorCode.CANCEL))
    assert not peer.connection.closed


def test_resets_that_the_server_is_made_to_send() -> None:
    peer = Peer(Limits(reset_burst=100))
    for stream_id in itertools.count(1, 2):
        peer.request(stream_id)
        peer.write(frames.window_update(stream_id, 0))  # a stream error: the server resets
        if peer.connection.closed:
            break
        assert stream_id < 1000
    assert ended_calmly(peer)


def test_reset_calls_count_as_streams_while_their_handlers_run() -> None:
    peer = Peer(Limits(max_concurrent_streams=10))
    peer.connection.lingering = 10
    peer.request(1)
    assert peer.bodies == {}
    (refusal,) = peer.read()
    assert int.from_bytes(refusal.payload, "big") == ErrorCode.REFUSED_STREAM


def test_refused_streams_are_counted() -> None:
    peer = Peer(Limits(max_concurrent_streams=1, reset_burst=50))
    for stream_id in range(1, 1000, 2):
        peer.request(stream_id)
        if peer.connection.closed:
            break
    assert ended_calmly(peer)


def test_continuation_flood() -> None:
    peer = Peer()
    peer.frame(HEADERS, 0, 1, peer.block()[:4])
    assert attack(peer, frames.head(100, CONTINUATION, 0, 1) + bytes(100)) < 400
    assert ended_calmly(peer)
    assert peer.connection._block is None or len(peer.connection._block) <= Limits().max_block_bytes


def test_empty_continuation_flood() -> None:
    peer = Peer()
    peer.frame(HEADERS, 0, 1, peer.block()[:4])
    assert attack(peer, frames.head(0, CONTINUATION, 0, 1)) < 400
    assert ended_calmly(peer)


def test_hpack_bomb() -> None:
    peer = Peer()
    entry = b"\x40\x01a\x7f\x81\x1e" + b"b" * 4000 + b"\xbe"  # a field of 4,000 bytes; then, by index, again
    peer.write(frames.headers(1, entry + b"\xbe" * 12_000, end_stream=True, max_frame_size=16_384))
    head = peer.bodies[1].head
    assert head.oversized
    assert sum(len(value) for _, value in head.metadata) <= Limits().max_header_list_bytes


def test_long_header_block() -> None:
    peer = Peer()
    size = Limits().max_block_bytes + 1
    peer.write(frames.head(size, HEADERS, frames.END_HEADERS, 1))
    assert ended_calmly(peer)


def test_ping_flood() -> None:
    peer = Peer(Limits(pings=PingLimits(min_interval_s=0)))
    assert attack(peer, frames.ping(bytes(8), ack=False)) <= Limits().control_burst
    assert ended_calmly(peer)


def test_too_many_keepalive_pings() -> None:
    peer = Peer()
    for _ in range(4):
        assert not peer.connection.closed
        peer.now += 10.0
        peer.frame(PING, 0, 0, bytes(8))
    assert ended_calmly(peer)
    assert str(peer.connection.fault) == "ENHANCE_YOUR_CALM: too_many_pings"


def test_pings_between_replies_are_welcome() -> None:
    peer = Peer()
    for stream_id in range(1, 100, 2):
        peer.frame(PING, 0, 0, bytes(8))
        peer.request(stream_id, end_stream=True)
        peer.connection.sender.respond(peer.bodies[stream_id].stream, b"")
    assert not peer.connection.closed


def test_settings_flood() -> None:
    peer = Peer()
    assert attack(peer, frames.settings(())) <= Limits().control_burst
    assert ended_calmly(peer)


def test_settings_with_many_values() -> None:
    peer = Peer()
    assert attack(peer, frames.settings([(0x99, 1)] * 500)) < 10
    assert ended_calmly(peer)


def test_settings_acks_nobody_asked_for() -> None:
    peer = Peer()
    assert attack(peer, frames.SETTINGS_ACK) <= Limits().control_burst
    assert ended_calmly(peer)


def test_empty_data_flood() -> None:
    peer = Peer()
    peer.request(1)
    assert attack(peer, frames.head(0, DATA, 0, 1)) <= Limits().control_burst + 10
    assert ended_calmly(peer)


def test_padding_alone_is_no_data() -> None:
    peer = Peer()
    peer.request(1)
    assert attack(peer, frames.head(2, DATA, frames.PADDED, 1) + b"\x01\x00") <= Limits().control_burst + 10
    assert ended_calmly(peer)


def test_priority_churn() -> None:
    peer = Peer()
    bites = [frames.head(5, PRIORITY, 0, stream_id) + bytes(5) for stream_id in (1, 3, 5)]
    assert attack(peer, *bites) <= Limits().control_burst
    assert ended_calmly(peer)
    assert peer.connection.streams == {}


def test_window_update_flood() -> None:
    peer = Peer()
    assert attack(peer, frames.window_update(0, 1)) <= Limits().control_burst + 10
    assert ended_calmly(peer)


def test_window_updates_on_closed_streams() -> None:
    peer = Peer()
    peer.request(1, end_stream=True)
    peer.connection.sender.respond(peer.bodies[1].stream, b"")
    assert attack(peer, frames.window_update(1, 1)) <= Limits().control_burst + 20
    assert ended_calmly(peer)


def test_unknown_frame_flood() -> None:
    peer = Peer()
    assert attack(peer, frames.head(0, 0x99, 0, 0)) <= Limits().control_burst
    assert ended_calmly(peer)


def test_reset_flood_on_closed_streams() -> None:
    peer = Peer()
    peer.request(1)
    peer.write(frames.rst_stream(1, 8))
    assert attack(peer, frames.rst_stream(1, 8)) <= Limits().control_burst + 10
    assert ended_calmly(peer)


def test_initial_window_seesaw_is_charged_by_the_streams_it_touches() -> None:
    peer = Peer()
    for stream_id in range(1, 2 * 640, 2):
        peer.request(stream_id)
    bites = [frames.settings([(frames.INITIAL_WINDOW_SIZE, size)]) for size in (0, 1)]
    assert attack(peer, *bites) < Limits().control_burst // 20
    assert ended_calmly(peer)


def test_data_dribble_moves_no_more_than_the_window() -> None:
    peer = Peer()
    peer.write(frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]))
    for stream_id in (1, 3):
        peer.request(stream_id, end_stream=True)
    peer.read()
    for stream_id in (1, 3):
        peer.connection.sender.payload(peer.bodies[stream_id].stream, bytes(1_000_000))
    assert peer.read() == []
    for _ in range(50):
        peer.write(frames.window_update(1, 1))
        assert [len(f.payload) for f in peer.read()] == [1]
    assert peer.connection.sender.queued_bytes == 2_000_000 - 50


def test_one_byte_windows_end_when_the_allowance_does() -> None:
    peer = Peer()
    peer.write(frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]))
    peer.request(1, end_stream=True)
    peer.connection.sender.payload(peer.bodies[1].stream, bytes(1_000))
    for _ in range(1_000):
        peer.write(frames.window_update(1, 1))
    assert b"".join(f.payload for f in peer.read() if f.kind == DATA) == bytes(1_000)


def test_replies_nobody_reads_stop_new_streams() -> None:
    peer = Peer(Limits(max_unsent_bytes=100_000))
    peer.write(frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]))
    peer.read()
    for stream_id in range(1, 20, 2):
        peer.request(stream_id, end_stream=True)
        if stream_id in peer.bodies:
            peer.connection.sender.headers(peer.bodies[stream_id].stream, RESPONSE_BLOCK)
            peer.connection.sender.message(peer.bodies[stream_id].stream, 0, bytes(30_000))
            peer.connection.sender.end(peer.bodies[stream_id].stream, OK_BLOCK)
    assert len(peer.bodies) == 4
    assert peer.connection.sender.queued_bytes < 100_000 + 30_005
    assert {f.kind for f in peer.read()} == {HEADERS, RST_STREAM}


def test_more_data_than_the_stream_window() -> None:
    peer = Peer(Limits(stream_window_bytes=65_535))
    peer.request(1)
    peer.data(1, bytes(65_536))
    assert peer.bodies[1].reset_code == ErrorCode.FLOW_CONTROL_ERROR
    assert peer.bodies[1].data == b""


def test_more_data_than_the_connection_window() -> None:
    peer = Peer(Limits(stream_window_bytes=200_000, connection_window_bytes=100_000))
    peer.request(1)
    peer.data(1, bytes(100_001))
    assert peer.goaway_code() == ErrorCode.FLOW_CONTROL_ERROR


def test_memory_of_resets_and_gaps_is_bounded() -> None:
    peer = Peer(Limits(reset_burst=10**6))
    for stream_id in range(1, 40_000, 4):
        peer.request(stream_id)
        peer.write(frames.window_update(stream_id, 0))
    assert len(peer.connection.ids) <= 1024 + 32
    assert peer.connection.streams == {}


def test_header_blocks_that_all_differ_are_not_hoarded() -> None:
    peer = Peer()
    for stream_id in range(1, 2_000, 2):
        block = peer.block() + b"\x00\x01x" + bytes([3]) + f"{stream_id % 1000:03d}".encode()
        peer.write(frames.headers(stream_id, block, end_stream=True, max_frame_size=16_384))
        peer.connection.sender.respond(peer.bodies[stream_id].stream, b"")
    assert len(peer.connection._reader._known) <= 64
    assert len(peer.connection._reader._templates) <= 64


def test_after_the_end_nothing_is_parsed() -> None:
    peer = Peer()
    peer.frame(SETTINGS, 0, 0, b"wrong")
    assert peer.connection.closed
    peer.request(1)
    peer.data(1, message(b""))
    assert peer.bodies == {}
