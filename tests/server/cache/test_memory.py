"""MemoryStore: bounded, fair to what repeats, and forgetful in time."""

from __future__ import annotations

import gc
import itertools
import math
import random
import tracemalloc

from engines.tensor import DType, Tensor
from server.cache.key import Key
from server.cache.memory import ENTRY_BYTES, TENSOR_BYTES, MemoryOptions, MemoryStore, Outputs, own, size_of


def key(number: int) -> Key:
    return Key(number.to_bytes(32, "big"))


def outputs(size: int = 100) -> Outputs:
    return (Tensor("OUT", DType.UINT8, (size,), bytes(size)),)


def put(store: MemoryStore, key: Key, owner: str, kept: Outputs, expires: float) -> bool:
    return store.put(key, owner, kept, size_of(kept), expires)


def store_for(entries: int, size: int = 100) -> MemoryStore:
    return MemoryStore(MemoryOptions(size_bytes=entries * size_of(outputs(size))))


def test_what_was_put_comes_back_until_it_expires() -> None:
    store = store_for(4)
    kept = outputs()
    assert put(store, key(1), "m", kept, expires=10.0)
    assert store.get(key(1), now=9.9) == kept
    assert store.get(key(1), now=10.0) is None
    assert store.get(key(1), now=5.0) is None
    statistics = store.statistics()
    assert (statistics.entries, statistics.size_bytes, statistics.expirations) == (0, 0, 1)


def test_the_later_of_two_puts_counts() -> None:
    store = store_for(4)
    put(store, key(1), "m", outputs(10), expires=1.0)
    put(store, key(1), "m", outputs(20), expires=9.0)
    assert store.get(key(1), now=5.0) == outputs(20)
    assert store.statistics().size_bytes == size_of(outputs(20))


def test_what_is_larger_than_everything_is_refused_and_harms_nothing() -> None:
    store = store_for(4)
    put(store, key(1), "m", outputs(), expires=1.0)
    assert not put(store, key(2), "m", outputs(10_000), expires=1.0)
    assert store.get(key(1), now=0.0) is not None


def test_a_large_answer_displaces_as_many_as_it_needs() -> None:
    store = store_for(10)
    for number in range(10):
        put(store, key(number), "m", outputs(), expires=math.inf)
    put(store, key(99), "m", outputs(3 * size_of(outputs())), expires=math.inf)
    assert store.get(key(99), now=0.0) is not None
    assert store.statistics().size_bytes <= store.statistics().limit_bytes


def test_inputs_seen_once_do_not_wash_out_those_that_repeat() -> None:
    store = store_for(100)
    for number in range(50):
        put(store, key(number), "m", outputs(), expires=math.inf)
        store.get(key(number), now=0.0)
    for number in range(1000, 2000):
        put(store, key(number), "m", outputs(), expires=math.inf)
    assert all(store.get(key(number), now=0.0) for number in range(50))
    assert store.statistics().evictions == 950


def test_a_key_that_comes_back_soon_is_taken_seriously() -> None:
    store = store_for(20)
    put(store, key(1), "m", outputs(), expires=math.inf)
    for number in range(100, 120):
        put(store, key(number), "m", outputs(), expires=math.inf)
    assert store.get(key(1), now=0.0) is None
    put(store, key(1), "m", outputs(), expires=math.inf)
    for number in range(200, 300):
        put(store, key(number), "m", outputs(), expires=math.inf)
    assert store.get(key(1), now=0.0) is not None


def test_better_than_lru_on_zipf_traffic() -> None:
    rand = random.Random(1)
    weights = list(itertools.accumulate(1 / (rank + 1) ** 0.8 for rank in range(5000)))
    traffic = rand.choices(range(5000), cum_weights=weights, k=30_000)
    store = store_for(250)
    hits = 0
    lru: dict[int, None] = {}
    lru_hits = 0
    for number in traffic:
        if store.get(key(number), now=0.0) is not None:
            hits += 1
        else:
            put(store, key(number), "m", outputs(), expires=math.inf)
        lru_hits += number in lru
        lru.pop(number, None)
        lru[number] = None
        if len(lru) > 250:
            del lru[next(iter(lru))]
    assert hits > 1.2 * lru_hits


def test_one_model_is_forgotten_and_the_other_is_not() -> None:
    store = store_for(10)
    for number, owner in enumerate("aab"):
        put(store, key(number), owner, outputs(), expires=math.inf)
    assert store.drop("a") == 2
    assert [store.get(key(number), now=0.0) is not None for number in range(3)] == [False, False, True]
    assert store.drop() == 1
    assert repr(store) == f"<MemoryStore [entries: 0 | bytes: 0 of {10 * size_of(outputs())}]>"


def test_a_view_of_a_batch_is_cut_free() -> None:
    batch = memoryview(bytes(range(100)))
    mine = own(Tensor("OUT", DType.UINT8, (2,), batch[10:12]))
    assert mine.data == b"\x0a\x0b"
    assert isinstance(mine.data, bytes)
    assert own(mine) is mine


def test_no_more_memory_is_used_than_is_counted() -> None:
    entries = 2000
    store = store_for(entries, size=64)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2 * entries):  # half of them end as ghosts
            tensor = Tensor("OUT", DType.UINT8, (1, 64), bytes([number % 251]) * 64)
            put(store, Key(number.to_bytes(32, "big")), "m", (tensor,), expires=float(number))
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    counted = store.statistics().size_bytes
    assert counted == entries * (ENTRY_BYTES + TENSOR_BYTES + 64)
    assert 0.7 * counted < used < counted


def test_the_garbage_collector_does_not_look_at_entries() -> None:
    store = store_for(3000)
    for number in range(3000):
        put(store, key(number), "m", outputs(), expires=math.inf)
    for _ in range(4):  # a tuple is let go of in the collection after all that it holds has been
        gc.collect()
    assert sum(isinstance(each, tuple) and len(each) == 4 and each[2] == "m" for each in gc.get_objects()) == 0
