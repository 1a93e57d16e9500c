"""Who is answered by whom, and what becomes of copies: in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from engines.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded
from server.rollout.rollout import Rollout, Stage
from server.rollout.router import RoutedInference
from server.rollout.shadow import LOWEST, Fate
from tests.server.rollout.support import FakeVersion, failing, request, running
from tests.support.virtual import run_virtual


def routed(rollout: Rollout, stable: FakeVersion, candidate: FakeVersion) -> RoutedInference:
    router = RoutedInference(rollout)
    router.route(stable.spec, stable, candidate)
    return router


async def settle() -> None:
    """Let copies end."""
    for _ in range(10):
        await asyncio.sleep(1.0)


def test_callers_stay_on_their_side_and_shares_are_kept() -> None:
    async def main() -> None:
        stable, candidate = FakeVersion(1), FakeVersion(2)
        router = routed(running(1, steps=(0.1, 0.5), shadowing={"sample": 0.0}), stable, candidate)
        for _ in range(2):
            for number in range(200):
                answer = await router.infer(request(f"caller {number}"))
                assert answer.version in (1, 2)
        sides = [{asked.id for asked in version.asked} for version in (stable, candidate)]
        assert not sides[0] & sides[1]
        assert 70 < len(sides[1]) < 130
        assert len(candidate.asked) == 2 * len(sides[1])
        assert all(asked.version == 2 for asked in candidate.asked)
        assert stable.borrowed == candidate.borrowed == 0

    run_virtual(main)


def test_copies_are_compared_and_nobody_waits_for_them() -> None:
    async def main() -> None:
        stable, candidate = FakeVersion(1), FakeVersion(2, seconds=3.0)
        rollout = running(0)
        router = routed(rollout, stable, candidate)
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await router.infer(request("a", priority=1, tenant="t", trace="t", parameters={"timeout": 3, "k": 1}))
        assert (loop.time(), answer.version) == (began, 1)
        await settle()
        (copy,) = candidate.engines.copies
        assert candidate.asked == []  # metered and cached nowhere
        assert (copy.version, copy.priority, copy.id, copy.tenant, copy.trace) == (2, LOWEST, "", "", "")
        assert (copy.parameters, copy.deadline) == ({"k": 1}, began + 5.0)
        assert (rollout.evidence.compared, rollout.evidence.agreement) == (1, 1.0)
        assert rollout.evidence.candidate.requests == 0
        assert router.shadow.fates[Fate.COMPARED] == 1
        assert repr(router.shadow) == "<Shadow [0 in flight, 0 bytes]>"

    run_virtual(main)


def test_copies_are_bounded_and_dropped_beyond_that() -> None:
    async def main() -> None:
        for bounds, dropped in (({"in_flight": 2}, 3), ({"bytes_in_flight": 40}, 3), ({}, 1)):
            stable, candidate = FakeVersion(1), FakeVersion(2, seconds=1.0)
            router = routed(running(0, shadowing=bounds), stable, candidate)  # a copy holds 16 bytes
            answers = [await router.infer(request(str(number))) for number in range(5)]
            assert all(answer.version == 1 for answer in answers)
            await settle()
            assert (router.shadow.fates[Fate.DROPPED], len(candidate.engines.copies)) == (dropped, 5 - dropped)
            assert router.shadow.bytes_in_flight == 0

    run_virtual(main)


def test_copies_only_use_idle_engines_lasting_inputs_and_their_own_time() -> None:
    async def main() -> None:
        stable, candidate = FakeVersion(1), FakeVersion(2, idle=False)
        rollout = running(0)
        router = routed(rollout, stable, candidate)
        await router.infer(request("a"))
        await settle()
        assert router.shadow.fates[Fate.DROPPED] == 1
        candidate.idle = True
        asked = request("b")
        shared = replace(asked.inputs[0], data=memoryview(bytearray(asked.inputs[0].data)))
        await router.infer(replace(asked, inputs=(shared,)))
        candidate.seconds = 60.0
        await router.infer(request("c"))
        candidate.seconds = 0.0
        candidate.answer = failing(Overloaded("full"))
        await settle()
        await router.infer(request("d"))
        await settle()
        assert len(candidate.engines.copies) == 2
        assert router.shadow.fates[Fate.REFUSED] == 2
        assert rollout.evidence.compared == 0

    run_virtual(main)


@pytest.mark.parametrize(
    "broken", [failing(EngineFailed("crash")), failing(RuntimeError("bug")), lambda asked: (0.1, 0.9)]
)
def test_a_broken_candidate_is_found_by_its_copies_and_no_caller_knows(broken: Any) -> None:
    async def main() -> None:
        stable, candidate = FakeVersion(1), FakeVersion(2, broken)
        rollout = running(0)
        router = routed(rollout, stable, candidate)
        for number in range(20):
            assert (await router.infer(request(str(number)))).version == 1
            await asyncio.sleep(0.1)
        await settle()
        assert rollout.stage is Stage.ROLLED_BACK
        assert rollout.reason.startswith("agrees on 0.0% of 10 compared requests")
        assert candidate.borrowed == 0

    run_virtual(main)


def test_copies_of_the_candidates_own_requests_go_to_the_stable_version() -> None:
    async def main() -> None:
        stable, candidate = FakeVersion(1), FakeVersion(2, lambda asked: (0.1, 0.9))
        rollout = running(3)
        router = routed(rollout, stable, candidate)
        assert (await router.infer(request("a"))).version == 2
        await settle()
        assert len(stable.engines.copies) == 1
        assert (rollout.evidence.compared, rollout.evidence.agreement) == (1, 0.0)
        stable.answer = failing(EngineFailed("the stable version's own fault"))
        await router.infer(request("b"))
        await settle()
        assert rollout.evidence.compared == 1

    run_virtual(main)


@pytest.mark.parametrize("error", [EngineFailed("crash"), Overloaded("full"), RuntimeError("bug")])
def test_what_the_candidate_fails_the_stable_version_answers(error: Exception) -> None:
    async def main() -> None:
        stable, candidate = FakeVersion(1), FakeVersion(2, failing(error))
        rollout = running(3)
        router = routed(rollout, stable, candidate)
        for number in range(5):
            assert (await router.infer(request(str(number)))).version == 1
        assert router.retries == 5
        arm = rollout.evidence.candidate
        assert (arm.failures, arm.faults, rollout.evidence.stable.requests) == (5, 0 if "full" in str(error) else 5, 0)

    run_virtual(main)


def test_what_is_not_retried() -> None:
    async def main() -> None:
        stable, candidate = FakeVersion(1), FakeVersion(2, failing(EngineFailed("crash")), seconds=1.0)
        now = asyncio.get_running_loop().time()
        told = running(3, retry=False)
        with pytest.raises(EngineFailed):
            await routed(told, stable, candidate).infer(request("a"))
        assert told.evidence.candidate.failures == 1
        late = running(3)
        with pytest.raises(EngineFailed):
            await routed(late, stable, FakeVersion(2, failing(EngineFailed("crash")), seconds=9.0)).infer(
                request("b", deadline=now + 5.0)
            )
        over = running(3)
        with pytest.raises(DeadlineExceeded):
            await routed(over, stable, FakeVersion(2, failing(DeadlineExceeded("over")))).infer(request("c"))
        assert over.evidence.candidate.failures == 1
        assert stable.asked == []

    run_virtual(main)


def test_a_refusal_speaks_against_the_candidate_only_where_the_stable_version_answers() -> None:
    async def main() -> None:
        refuses = failing(InvalidRequest("no"))
        rollout = running(3)
        router = routed(rollout, FakeVersion(1), FakeVersion(2, refuses))
        assert (await router.infer(request("a"))).version == 1
        assert rollout.evidence.candidate.failures == 1
        router.route(router._spec, FakeVersion(1, refuses), FakeVersion(2, refuses))
        with pytest.raises(InvalidRequest):
            await router.infer(request("a"))
        assert rollout.evidence.candidate.failures == 1

    run_virtual(main)


def test_a_caller_who_runs_out_of_time_speaks_against_a_version_and_one_who_leaves_does_not() -> None:
    async def main() -> None:
        rollout = running(3)
        router = routed(rollout, FakeVersion(1), FakeVersion(2, seconds=50.0))
        now = asyncio.get_running_loop().time()
        for left, failures in ((100.0, 0), (10.0, 1)):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(10.0):
                    await router.infer(request("a", deadline=now + left))
            assert rollout.evidence.candidate.failures == failures
            now = asyncio.get_running_loop().time()

    run_virtual(main)


def test_a_candidate_that_is_gone_harms_nobody() -> None:
    async def main() -> None:
        rollout = running(3)
        router = routed(rollout, FakeVersion(1), FakeVersion(2, gone=True))
        assert (await router.infer(request("a"))).version == 1
        shadowed = running(0)
        router = routed(shadowed, FakeVersion(1), FakeVersion(2, gone=True))
        assert (await router.infer(request("a"))).version == 1
        await settle()
        assert router.shadow.fates[Fate.REFUSED] == 1

    run_virtual(main)


def test_a_candidate_three_times_as_slow_is_rolled_back_in_virtual_time() -> None:
    async def main() -> None:
        rollout = running(1, steps=(0.1, 0.5), shadowing={"sample": 0.0})
        router = routed(rollout, FakeVersion(1, seconds=0.010), FakeVersion(2, seconds=0.030))
        for number in range(200):
            await router.infer(request(str(number)))
        assert rollout.stage is Stage.ROLLED_BACK
        assert rollout.reason.startswith("its median is above")
        for number in range(20):
            assert (await router.infer(request(str(number)))).version == 1

    run_virtual(main)


def test_a_fault_in_the_book_keeping_is_nobodys_business(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        rollout = running(2)
        router = routed(rollout, FakeVersion(1), FakeVersion(2))

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        rollout.answered = broken  # type: ignore[method-assign]
        assert (await router.infer(request("a"))).outputs
        assert (rollout.stage, rollout.reason) == (Stage.ROLLED_BACK, "internal error: ZeroDivisionError")
        await router.shadow.close()

    run_virtual(main)
    assert "cannot go on" in caplog.text
