"""The scheduler that a model's configuration asks for."""

from __future__ import annotations

from dataclasses import replace

from engines.scheduling.drain import DrainQueue
from engines.scheduling.latency import CostModel
from engines.scheduling.policy import DeadlineOptions, Limits, Policy, Scheduler
from engines.scheduling.queue import DeadlineQueue


def make_scheduler(
    policy: Policy, limits: Limits, options: DeadlineOptions, cost: CostModel, engines: int
) -> Scheduler:
    """`cost` is what the DEADLINE policy plans with and teaches; `engines` run side by side."""
    if policy is Policy.FIFO:
        return DeadlineQueue(replace(limits, in_order=True))
    return DrainQueue(limits, cost, options, engines=engines)
