"""Whatever happens to it, the memory store stays within its bound and never gives out anything else."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engines.tensor import DType, Tensor
from server.cache.key import Key
from server.cache.memory import MemoryOptions, MemoryStore, Outputs, size_of

KEYS = st.integers(0, 40).map(lambda number: Key(number.to_bytes(32, "big")))
LIMIT = 12_000


class StoreMachine(RuleBasedStateMachine):
    """Against a dictionary of what was put last."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(MemoryOptions(size_bytes=LIMIT))
        self.last: dict[Key, tuple[Outputs, str, float]] = {}
        self.now = 0.0

    @rule(
        key=KEYS, size=st.sampled_from([0, 10, 500, 3000, 20_000]), owner=st.sampled_from("ab"), ttl=st.integers(1, 9)
    )
    def put(self, key: Key, size: int, owner: str, ttl: int) -> None:
        outputs = (Tensor("OUT", DType.UINT8, (size,), bytes(size)),)
        if self.store.put(key, owner, outputs, size_of(outputs), self.now + ttl):
            self.last[key] = (outputs, owner, self.now + ttl)
            assert self.store.get(key, self.now) == outputs
        else:
            assert size_of(outputs) > LIMIT

    @rule(key=KEYS)
    def get(self, key: Key) -> None:
        found = self.store.get(key, self.now)
        if found is not None:
            outputs, _, expires = self.last[key]
            assert found == outputs
            assert self.now < expires

    @rule(owner=st.sampled_from(["a", "b", None]))
    def drop(self, owner: str | None) -> None:
        self.store.drop(owner)
        self.last = {key: kept for key, kept in self.last.items() if owner not in (None, kept[1])}
        assert all(self.store.get(Key(n.to_bytes(32, "big")), 0.0) is None for n in range(41) if owner is None)

    @rule()
    def time_passes(self) -> None:
        self.now += 2.0

    @invariant()
    def bounded(self) -> None:
        statistics = self.store.statistics()
        assert 0 <= statistics.size_bytes <= LIMIT
        assert (statistics.entries == 0) == (statistics.size_bytes == 0)


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
test_memory = StoreMachine.TestCase
