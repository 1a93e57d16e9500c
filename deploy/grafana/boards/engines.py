"""What runs the models."""

from __future__ import annotations

from panels import Dashboard, Panel, Query

from boards.expressions import MODEL, SERVER, quantile, rate, total

ENGINES = Dashboard(
    "kairos-engines",
    "Kairos / Engines and GPU",
    "What runs the models: engines, their load and faults, and the hardware below them.",
    (
        (
            "Engines",
            (
                Panel(
                    title="Busy share", unit="percentunit", warn=0.8, alarm=0.95, most=1,
                    description="Share of their time that engines execute. Near 1, waiting grows without bound.",
                    queries=(
                        Query(
                            f"{rate('kairos_batch_seconds_sum', 'model')} / {total('kairos_engines', 'model')}",
                            "{{model}}",
                        ),
                    ),
                ),
                Panel(
                    title="Engines by state", unit="short", stack=True,
                    description="Busy, idle, or missing: died, and not replaced yet.",
                    queries=(Query(total("kairos_engines", "state"), "{{state}}"),),
                ),
                Panel(
                    title="Rows answered", unit="ops",
                    description="Rows a second that engines answered.",
                    queries=(Query(rate("kairos_inference_rows_total", "model"), "{{model}}"),),
                ),
                Panel(
                    title="Seconds a batch", unit="s", warn=0.1, alarm=1.0,
                    description="How long a batch occupies its engine.",
                    queries=(
                        Query(quantile(0.5, "kairos_batch_seconds"), "{{model}} p50"),
                        Query(quantile(0.99, "kairos_batch_seconds"), "{{model}} p99"),
                    ),
                ),
                Panel(
                    title="Failed batches and lost engines", unit="ops", warn=0.01, alarm=1.0,
                    description="Batches that an engine failed, and engines that died and were replaced, a second.",
                    queries=(
                        Query(rate("kairos_failed_batches_total", "model"), "{{model}} failed"),
                        Query(rate("kairos_engines_replaced_total", "model"), "{{model}} replaced"),
                    ),
                ),
                Panel(
                    title="Load time", unit="s", warn=60, alarm=300,
                    description="Seconds that bringing a version up took: reading, optimising, measuring, warming up.",
                    queries=(
                        Query(
                            f"max by (model, version) (kairos_model_load_seconds{{{MODEL}}})", "{{model}}:{{version}}"
                        ),
                    ),
                ),
            ),
        ),
        (
            "GPU",
            (
                Panel(
                    title="GPU utilisation", unit="percentunit", warn=0.9, most=1, width=6,
                    description="Share of time in which a kernel ran. Empty on a machine without an NVIDIA GPU.",
                    queries=(Query(f"kairos_gpu_utilization_ratio{{{SERVER}}}", "{{instance}} GPU {{gpu}}"),),
                ),
                Panel(
                    title="GPU memory", unit="percentunit", warn=0.8, alarm=0.9, most=1, width=6,
                    description="Share of the device memory in use, by whomever.",
                    queries=(
                        Query(
                            f"kairos_gpu_memory_used_bytes{{{SERVER}}} / kairos_gpu_memory_total_bytes{{{SERVER}}}",
                            "{{instance}} GPU {{gpu}}",
                        ),
                    ),
                ),
                Panel(
                    title="GPU power", unit="watt", width=6,
                    description="Power drawn, and what is allowed.",
                    queries=(
                        Query(f"kairos_gpu_power_watts{{{SERVER}}}", "{{instance}} GPU {{gpu}}"),
                        Query(f"kairos_gpu_power_limit_watts{{{SERVER}}}", "{{instance}} GPU {{gpu}} limit"),
                    ),
                ),
                Panel(
                    title="Energy a row", unit="joule", width=6,
                    description="Energy of all GPUs for each answered row.",
                    queries=(
                        Query(
                            f"sum(rate(kairos_gpu_energy_joules_total{{{SERVER}}}[$__rate_interval]))"
                            f" / sum({rate('kairos_inference_rows_total')})",
                            "joules",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Machine",
            (
                Panel(
                    title="CPU", unit="percentunit", warn=0.8, alarm=0.95, most=1, width=12,
                    description="Share of the machine's CPU time in use, by whomever.",
                    queries=(
                        Query(
                            f"rate(kairos_host_cpu_busy_seconds_total{{{SERVER}}}[$__rate_interval])"
                            f" / rate(kairos_host_cpu_seconds_total{{{SERVER}}}[$__rate_interval])",
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    title="Memory", unit="percentunit", warn=0.8, alarm=0.95, most=1, width=12,
                    description="Share of the machine's memory in use, by whomever.",
                    queries=(
                        Query(
                            f"kairos_host_memory_used_bytes{{{SERVER}}} / kairos_host_memory_total_bytes{{{SERVER}}}",
                            "{{instance}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)  # fmt: skip
