"""How requests are put together."""

from __future__ import annotations

from panels import Dashboard, Panel, Query

from boards.expressions import MODEL, mean, quantile, rate, total

BATCHING = Dashboard(
    "kairos-batching",
    "Kairos / Batching",
    "How requests are put together: sizes, reasons, waiting, slack, waste, and how good the estimates are.",
    (
        (
            "Sizes",
            (
                Panel(
                    title="Rows in a batch", unit="short", width=8,
                    description="Mean rows of executed batches, padding left out.",
                    queries=(Query(mean("kairos_batch_rows"), "{{model}}"),),
                ),
                Panel(
                    title="Batch sizes", unit="short", kind="heatmap", width=8,
                    description="How many batches had how many rows.",
                    queries=(Query(rate("kairos_batch_rows_bucket", "le"), "{{le}}"),),
                ),
                Panel(
                    title="Why batches left", unit="ops", stack=True, width=8,
                    description="Full, a preferred size reached, nobody else waiting, waited long enough, or alone.",
                    queries=(Query(rate("kairos_batches_total", "closed_by"), "{{closed_by}}"),),
                ),
            ),
        ),
        (
            "Waiting",
            (
                Panel(
                    title="Queue wait and execution, p99", unit="s", width=12, warn=0.05, alarm=0.5, exemplars=True,
                    description="Waiting that exceeds execution by far says that engines are the bottleneck.",
                    queries=(
                        Query(quantile(0.99, "kairos_queue_seconds"), "{{model}} queue"),
                        Query(quantile(0.99, "kairos_execute_seconds"), "{{model}} execute"),
                    ),
                ),
                Panel(
                    title="Waiting requests", unit="short", width=6, warn=100, alarm=1000,
                    description="Requests in the queue at this moment.",
                    queries=(Query(total("kairos_queue_requests", "model"), "{{model}}"),),
                ),
                Panel(
                    title="Oldest waiting request", unit="s", width=6, warn=0.1, alarm=1.0,
                    description="How long the request that waits longest has waited.",
                    queries=(
                        Query(f"max by (model) (kairos_queue_oldest_seconds{{{MODEL}}})", "{{model}}"),
                    ),
                ),
            ),
        ),
        (
            "Deadlines",
            (
                Panel(
                    title="Slack at the start of execution", unit="s", kind="heatmap", width=8, warn=0.0,
                    description="Time left until the deadline when a request's batch started.",
                    queries=(Query(rate("kairos_slack_at_dispatch_seconds_bucket", "le"), "{{le}}"),),
                ),
                Panel(
                    title="Slack at the answer", unit="s", kind="heatmap", width=8, warn=0.0,
                    description="Time left until the deadline when a request was answered; below 0 it was late.",
                    queries=(Query(rate("kairos_slack_at_reply_seconds_bucket", "le"), "{{le}}"),),
                ),
                Panel(
                    title="Attainment by class of deadline", unit="percentunit", width=8, warn=0.99, alarm=0.95, most=1,
                    description="Share of the requests with deadlines of a class that were executed in time.",
                    queries=(
                        Query(
                            f'sum by (class) (rate(kairos_deadline_class_requests_total{{{MODEL}, result="met"}}'
                            f"[$__rate_interval])) / {rate('kairos_deadline_class_requests_total', 'class')}",
                            "{{class}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Economy",
            (
                Panel(
                    title="Wasted rows", unit="percentunit", width=8, warn=0.1, alarm=0.5, stack=True,
                    description="Share of the executed rows that were padding, or whose callers had left.",
                    queries=(
                        Query(
                            f"{rate('kairos_wasted_rows_total', 'reason')}"
                            f" / on () group_left () sum({rate('kairos_executed_rows_total')})",
                            "{{reason}}",
                        ),
                    ),
                ),
                Panel(
                    title="Estimates of execution time", unit="short", width=8, warn=1.1, alarm=1.2,
                    description="Measured over expected seconds; 1 is exact, 2 says that batches take twice as long.",
                    queries=(
                        Query(
                            f"max by (model, version) (kairos_estimate_error_ratio{{{MODEL}}})",
                            "{{model}}:{{version}}",
                        ),
                        Query(
                            f"max by (model, version) (kairos_estimate_spread_ratio{{{MODEL}}})",
                            "{{model}}:{{version}} planned",
                        ),
                    ),
                ),
                Panel(
                    title="Time a row", unit="s", width=8,
                    description="Engine seconds for each executed row; falls as batches grow.",
                    queries=(
                        Query(
                            f"{rate('kairos_batch_seconds_sum', 'model')}"
                            f" / {rate('kairos_executed_rows_total', 'model')}",
                            "{{model}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)  # fmt: skip
