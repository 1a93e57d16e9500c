"""Whether models still see the world that they were made for."""

from __future__ import annotations

from panels import Dashboard, Panel, Query

from boards.expressions import MODEL, rate, total

VERSION = "{{model}}:{{version}}"


def worst(metric: str, signals: str, by: str = "model, version, signal", pick: str = "max") -> str:
    """The worst of all servers, for some signals."""
    return f'{pick} by ({by}) ({metric}{{{MODEL}, signal=~"{signals}"}})'


QUALITY = Dashboard(
    "kairos-quality",
    "Kairos / Model quality",
    "Inputs, answers and confidence of watched models against their baselines. Empty where none is watched.",
    (
        (
            "Now",
            (
                Panel(
                    title="Alarms", unit="short", kind="state-timeline", alarm=0.5, width=12,
                    description="Red while a signal is beyond what chance explains at the level that the model sets.",
                    queries=(Query(worst("kairos_watch_alarm", ".+"), f"{VERSION} {{{{signal}}}}"),),
                ),
                Panel(
                    title="Mean confidence", unit="percentunit", most=1, width=12,
                    description="Mean probability of the answered class in the latest window.",
                    queries=(
                        Query(worst("kairos_watch_value", "confidence", "model, version", "min"), VERSION),
                    ),
                ),
            ),
        ),
        (
            "Drift",
            (
                Panel(
                    title="Drift of the inputs", unit="short", warn=0.1, alarm=0.25,
                    description="Largest PSI of any column. By custom 0.1 is worth a look and 0.25 worth a new model.",
                    queries=(Query(worst("kairos_watch_value", "drift", "model, version"), VERSION),),
                ),
                Panel(
                    title="Drift of each input", unit="short", warn=0.1, alarm=0.25,
                    description="The same, input by input.",
                    queries=(Query(worst("kairos_watch_value", "drift[.].+"), f"{VERSION} {{{{signal}}}}"),),
                ),
                Panel(
                    title="Drift of the answers", unit="short", warn=0.1, alarm=0.25,
                    description="PSI of predicted classes and of how sure they are.",
                    queries=(
                        Query(worst("kairos_watch_value", "prediction_drift", "model, version"), VERSION),
                    ),
                ),
                Panel(
                    title="p-values", unit="short", width=12,
                    description="How often chance alone goes as far. Corrected for all columns and tests of a signal.",
                    queries=(
                        Query(worst("kairos_watch_p_value", ".+", pick="min"), f"{VERSION} {{{{signal}}}}"),
                    ),
                ),
                Panel(
                    title="Looks", unit="ops", width=12,
                    description="Comparisons a second. None: too little traffic to fill a window, or no baseline.",
                    queries=(Query(rate("kairos_watch_looks_total", "model, version"), VERSION),),
                ),
            ),
        ),
        (
            "The watch itself",
            (
                Panel(
                    title="Requests looked at", unit="reqps", stack=True,
                    description="Requests that were drawn, by whether there was room for them.",
                    queries=(Query(rate("kairos_watch_requests_total", "model, result"), "{{model}} {{result}}"),),
                ),
                Panel(
                    title="Waiting and failing", unit="short", warn=1,
                    description="Failures a second of those who are handed requests. The log says which and why.",
                    queries=(
                        Query(rate("kairos_watch_sink_errors_total", "model"), "{{model}} errors"),
                        Query(f"{total('kairos_watch_waiting_bytes', 'model')} / 1048576", "{{model}} MiB waiting"),
                    ),
                ),
                Panel(
                    title="Rows of the baseline", unit="short", kind="stat",
                    description="0: nothing to compare with. Make one with `kairos baseline`.",
                    queries=(
                        Query(f"max by (model, version) (kairos_watch_reference_rows{{{MODEL}}})", VERSION),
                    ),
                ),
            ),
        ),
    ),
)  # fmt: skip
