"""What callers get."""

from __future__ import annotations

from panels import Dashboard, Panel, Query

from boards.expressions import MODEL, SERVER, mean, outcome, quantile, rate, total

GOODPUT = f"{outcome('in_deadline')} / {rate('kairos_requests_total', 'model')}"

SERVICE = Dashboard(
    "kairos-service",
    "Kairos / Service",
    "What callers get: how many requests, how many in time, how long they take, how the others end.",
    (
        (
            "Now",
            (
                Panel(
                    title="Requests", unit="reqps", kind="stat", width=4, height=5,
                    description="Requests a second, however they end.",
                    queries=(Query(rate("kairos_requests_total"), "requests"),),
                ),
                Panel(
                    title="Goodput", unit="percentunit", kind="stat", width=4, height=5, warn=0.99, alarm=0.95,
                    description="Share of all requests that were answered before their deadline.",
                    queries=(
                        Query(
                            f'sum(rate(kairos_requests_total{{{MODEL}, outcome="in_deadline"}}[$__rate_interval]))'
                            f" / sum({rate('kairos_requests_total')})",
                            "goodput",
                        ),
                    ),
                ),
                Panel(
                    title="Availability", unit="percentunit", kind="stat", width=4, height=5, warn=0.999, alarm=0.99,
                    description="Share of all requests, also those that reached no model, neither shed nor failed.",
                    queries=(Query("kairos:availability:ratio_rate5m", "availability"),),
                ),
                Panel(
                    title="p99 latency", unit="s", kind="stat", width=4, height=5, warn=0.1, alarm=1.0,
                    description="99 of 100 answers came within this time.",
                    queries=(Query(quantile(0.99, "kairos_request_seconds", ""), "p99"),),
                ),
                Panel(
                    title="In flight", unit="short", kind="stat", width=4, height=5, warn=1000, alarm=10000,
                    description="Requests taken in and not yet answered.",
                    queries=(Query(total("kairos_requests_in_flight"), "requests"),),
                ),
                Panel(
                    title="Servers", unit="short", kind="stat", width=4, height=5, warn=1, alarm=0.5,
                    description="Server processes that want traffic.",
                    queries=(Query(total("kairos_serving", "", SERVER), "serving"),),
                ),
            ),
        ),
        (
            "Requests",
            (
                Panel(
                    title="Requests by outcome", unit="reqps", stack=True, width=12,
                    description="How requests ended. Late ones were answered after their deadline, expired ones never.",
                    queries=(Query(rate("kairos_requests_total", "outcome"), "{{outcome}}"),),
                ),
                Panel(
                    title="Goodput by model", unit="percentunit", width=12, warn=0.99, alarm=0.95, most=1,
                    description="Share of a model's requests that were answered before their deadline.",
                    queries=(
                        Query(GOODPUT, "{{model}}"),
                        Query("kairos:goodput:objective", "objective"),
                    ),
                ),
                Panel(
                    title="Latency", unit="s", width=12, warn=0.1, alarm=1.0, exemplars=True,
                    description="Time from a request's arrival at its model to its answer. Dots lead to traces.",
                    queries=tuple(
                        Query(quantile(share, "kairos_request_seconds"), f"{{{{model}}}} p{share * 100:g}")
                        for share in (0.5, 0.95, 0.99)
                    ),
                ),
                Panel(
                    title="Latency distribution", unit="s", kind="heatmap", width=12, warn=0.1, exemplars=True,
                    description="How many answers took how long.",
                    queries=(Query(rate("kairos_request_seconds_bucket", "le"), "{{le}}"),),
                ),
                Panel(
                    title="Where the time goes", unit="s", stack=True, width=12, warn=0.1,
                    description="Mean seconds of a request in each phase.",
                    queries=tuple(
                        Query(mean(f"kairos_{phase}_seconds", ""), phase)
                        for phase in ("queue", "gather", "execute", "scatter")
                    ),
                ),
                Panel(
                    title="Requests without an answer", unit="reqps", width=12, warn=1, alarm=10,
                    description="Shed at the door, expired in the queue, left by the caller, invalid, or failed.",
                    queries=(
                        Query(
                            f'sum by (model, outcome) (rate(kairos_requests_total{{{MODEL}, '
                            'outcome=~"shed|expired|cancelled|invalid|error"}[$__rate_interval])) > 0',
                            "{{model}} {{outcome}}",
                        ),
                        Query(
                            'sum by (outcome) (rate(kairos_requests_total{model="", instance=~"$instance"}'
                            "[$__rate_interval]))",
                            "no model: {{outcome}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Objectives and models",
            (
                Panel(
                    title="Goodput burn rate", unit="short", warn=1, alarm=14.4,
                    description="How many times faster than allowed the error budget is spent. 14.4 pages.",
                    queries=tuple(
                        Query(
                            f"(1 - model:kairos_goodput:ratio_rate{window})"
                            " / on () group_left () (1 - kairos:goodput:objective)",
                            f"{{{{model}}}} {window}",
                        )
                        for window in ("5m", "1h", "6h")
                    ),
                ),
                Panel(
                    title="Requests in flight", unit="short", warn=1000, alarm=10000,
                    description="Requests taken in and not yet answered.",
                    queries=(Query(total("kairos_requests_in_flight", "model"), "{{model}}"),),
                ),
                Panel(
                    title="Ready versions", unit="short", kind="state-timeline", warn=1, alarm=0.5,
                    description="Versions of each model that serve.",
                    queries=(
                        Query(
                            f'sum by (model) (kairos_model_state{{{MODEL}, state="READY"}})', "{{model}}"
                        ),
                    ),
                ),
            ),
        ),
    ),
)  # fmt: skip
