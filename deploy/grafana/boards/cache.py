"""What is answered from memory."""

from __future__ import annotations

from panels import Dashboard, Panel, Query

from boards.expressions import MODEL, SERVER, quantile, rate

CACHE = Dashboard(
    "kairos-cache",
    "Kairos / Cache",
    "What is answered from memory. Empty where no response cache is configured.",
    (
        (
            "Answers",
            (
                Panel(
                    title="Hit ratio", unit="percentunit", most=1,
                    description="Share of the requests that no engine had to run for.",
                    queries=(
                        Query(
                            "sum by (model) (rate(kairos_cache_requests_total{"
                            f'{MODEL}, result=~"memory_hits|redis_hits|shared"}}[$__rate_interval]))'
                            f" / {rate('kairos_cache_requests_total', 'model')}",
                            "{{model}}",
                        ),
                    ),
                ),
                Panel(
                    title="Requests by result", unit="reqps", stack=True,
                    description="Found here or in Redis, shared with one in flight, executed, bypassed, or failed.",
                    queries=(Query(rate("kairos_cache_requests_total", "result"), "{{result}}"),),
                ),
                Panel(
                    title="Answers by origin", unit="reqps", stack=True,
                    description="From an engine, from a cache, or from another identical request's execution.",
                    queries=(Query(rate("kairos_answers_total", "origin"), "{{origin}}"),),
                ),
                Panel(
                    title="Time of a hit, price of a miss", unit="s", warn=0.001, alarm=0.01, width=12,
                    description="Mean seconds from look-up to answer of a hit, and that the cache adds to a miss.",
                    queries=(
                        Query(
                            f"{rate('kairos_cache_hit_seconds_total', 'model')} / sum by (model) (rate("
                            f'kairos_cache_requests_total{{{MODEL}, result=~"memory_hits|redis_hits"}}'
                            "[$__rate_interval]))",
                            "{{model}} hit",
                        ),
                        Query(
                            f"{rate('kairos_cache_miss_seconds_total', 'model')} / sum by (model) (rate("
                            f'kairos_cache_requests_total{{{MODEL}, result="misses"}}[$__rate_interval]))',
                            "{{model}} miss",
                        ),
                    ),
                ),
                Panel(
                    title="Latency without an engine, p99", unit="s", warn=0.01, alarm=0.1, width=12,
                    description="99 of 100 requests that no engine ran for were answered within this time.",
                    queries=(Query(quantile(0.99, "kairos_remembered_seconds"), "{{model}}"),),
                ),
            ),
        ),
        (
            "In this process",
            (
                Panel(
                    title="Memory used", unit="percentunit", warn=0.9, most=1,
                    description="Share of the memory that the cache may use. Full is normal; see the evictions.",
                    queries=(
                        Query(f"kairos_cache_bytes{{{SERVER}}} / kairos_cache_limit_bytes{{{SERVER}}}", "{{instance}}"),
                    ),
                ),
                Panel(
                    title="Entries", unit="short",
                    description="Answers kept.",
                    queries=(Query(f"kairos_cache_entries{{{SERVER}}}", "{{instance}}"),),
                ),
                Panel(
                    title="Evictions and expirations", unit="ops", warn=100,
                    description="Answers that left to make room, and that were found past their time, a second.",
                    queries=(
                        Query(rate("kairos_cache_evictions_total", "instance", SERVER), "{{instance}} evicted"),
                        Query(rate("kairos_cache_expirations_total", "instance", SERVER), "{{instance}} expired"),
                    ),
                ),
            ),
        ),
        (
            "Redis",
            (
                Panel(
                    title="Look-ups", unit="ops", stack=True,
                    description="Late, failed and skipped ones cost nothing but the chance of a hit.",
                    queries=(Query(rate("kairos_redis_lookups_total", "result", SERVER), "{{result}}"),),
                ),
                Panel(
                    title="Look-ups without an answer", unit="percentunit", warn=0.01, alarm=0.05, most=1,
                    description="Share of the look-ups that were late, failed or skipped.",
                    queries=(
                        Query(
                            "sum by (instance) (rate(kairos_redis_lookups_total{"
                            f'{SERVER}, result=~"late|failed|skipped"}}[$__rate_interval]))'
                            f" / {rate('kairos_redis_lookups_total', 'instance', SERVER)}",
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    title="Writes", unit="ops", stack=True,
                    description="Dropped ones found the queue full or the breaker open.",
                    queries=(Query(rate("kairos_redis_writes_total", "result", SERVER), "{{result}}"),),
                ),
            ),
        ),
    ),
)  # fmt: skip
