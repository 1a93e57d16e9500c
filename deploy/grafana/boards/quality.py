"""Whether models still see the world that they were made for."""

from __future__ import annotations

from panels import Dashboard, Panel, Query

from boards.expressions import MODEL, SERVER, rate, total

VERSION = "{{model}}:{{version}}"


def worst(metric: str, signals: str, by: str = "model, version, signal", pick: str = "max") -> str:
    """The worst of all servers, for some signals."""
    return f'{pick} by ({by}) ({metric}{{{MODEL}, signal=~"{signals}"}})'


def latest(metric: str, by: str = "model, version", pick: str = "max") -> str:
    """A gauge that all servers of a model should agree on."""
    return f"{pick} by ({by}) ({metric}{{{MODEL}}})"


# fmt: off
OUTCOMES = (
    "Outcomes",
    (
        Panel(
            title="Accuracy", unit="percentunit", most=1, width=12,
            description="Share of predictions that were right, by the outcomes reported within the last day.",
            queries=(Query(latest("kairos_feedback_accuracy", pick="min"), VERSION),),
        ),
        Panel(
            title="Calibration error", unit="percentunit", warn=0.05, alarm=0.15, width=12,
            description="Mean distance of confidence and accuracy. At 10 % a confidence of 90 % is worth 80 or 100.",
            queries=(Query(latest("kairos_feedback_calibration_error"), VERSION),),
        ),
        Panel(
            title="Business metrics", unit="short", width=12,
            description="Mean of each metric over the last day's outcomes, in the metric's own unit.",
            queries=(
                Query(
                    latest("kairos_feedback_outcome_mean", "model, version, metric", "avg"), f"{VERSION} {{{{metric}}}}"
                ),
            ),
        ),
        Panel(
            title="What business metrics go along with", unit="short", width=12,
            description="Rank correlation, -1 to 1, with the confidence of predictions and with drift of their time.",
            queries=(
                Query(
                    latest("kairos_feedback_outcome_correlation", "model, version, metric, with", "avg"),
                    f"{VERSION} {{{{metric}}}} with {{{{with}}}}",
                ),
            ),
        ),
        Panel(
            title="Labelled predictions", unit="short", width=12,
            description="Of the last day. Accuracy and calibration of less than a few hundred say little.",
            queries=(Query(total("kairos_feedback_labelled", "model, version"), VERSION),),
        ),
        Panel(
            title="Reports", unit="ops", stack=True, width=12,
            description="Reported outcomes a second. Unknown ones are of requests that were not sampled, or too early.",
            queries=(Query(rate("kairos_feedback_reports_total", "result", SERVER), "{{result}}"),),
        ),
    ),
)
TRIGGERS = (
    "Triggers and capture",
    (
        Panel(
            title="Rules", unit="short", kind="state-timeline", alarm=0.5, width=12,
            description="Red while a rule is raised for a model version: one episode, one event.",
            queries=(
                Query(latest("kairos_trigger_raised", "rule, model, version"), f"{{{{rule}}}} {VERSION}"),
            ),
        ),
        Panel(
            title="Events", unit="short", kind="stat", width=4,
            description="Of the last hour.",
            queries=(
                Query(f"sum by (rule) (increase(kairos_trigger_events_total{{{MODEL}}}[1h]))", "{{rule}}"),
            ),
        ),
        Panel(
            title="Deliveries", unit="ops", warn=1, width=8,
            description="Attempts at actions a second. Failed ones are tried again; those given up are lost.",
            queries=(
                Query(rate("kairos_trigger_deliveries_total", "action, result", SERVER), "{{action}} {{result}}"),
            ),
        ),
        Panel(
            title="Captured rows", unit="ops", stack=True, width=12,
            description="Rows a second that were kept as training data, or failed to be.",
            queries=(Query(rate("kairos_capture_rows_total", "model, result"), "{{model}} {{result}}"),),
        ),
        Panel(
            title="Captured data", unit="bytes", width=12,
            description="Size of each model's files. At `capture.max_bytes` the oldest are deleted.",
            queries=(Query(total("kairos_capture_bytes", "model"), "{{model}}"),),
        ),
    ),
)
COURSE = "{{model}} {{stable}} → {{candidate}}"
BY_COURSE = "model, stable, candidate"
ROLLOUTS = (
    "Rollouts",
    (
        Panel(
            title="Stages", unit="short", kind="state-timeline", width=12,
            description="Coloured: the stage it is in. Why a candidate was rolled back is in the server's log.",
            queries=(Query(latest("kairos_rollout_stage", f"{BY_COURSE}, stage"), f"{COURSE} {{{{stage}}}}"),),
        ),
        Panel(
            title="Share of the callers", unit="percentunit", most=1, width=12,
            description="Of those that name no version, those that the candidate answers.",
            queries=(Query(latest("kairos_rollout_share_ratio", BY_COURSE), COURSE),),
        ),
        Panel(
            title="Agreement", unit="percentunit", most=1, alarm=0.8, warn=0.9,
            description="Of candidate and stable version on this step's comparisons. Limits are the rollout's own.",
            queries=(Query(latest("kairos_rollout_step_agreement_ratio", BY_COURSE, "min"), COURSE),),
        ),
        Panel(
            title="Failures", unit="percentunit", warn=0.01,
            description="Share of each version's requests on this step that it failed.",
            queries=(
                Query(
                    f"sum by ({BY_COURSE}, arm) (kairos_rollout_step_failures{{{MODEL}}})"
                    f" / (sum by ({BY_COURSE}, arm) (kairos_rollout_step_requests{{{MODEL}}}) > 0)",
                    f"{COURSE} {{{{arm}}}}",
                ),
            ),
        ),
        Panel(
            title="Median latency", unit="s",
            description="Of each version on this step.",
            queries=(
                Query(
                    latest("kairos_rollout_step_median_seconds", f"{BY_COURSE}, arm"), f"{COURSE} {{{{arm}}}}"
                ),
            ),
        ),
        Panel(
            title="Copies", unit="reqps", stack=True, width=12,
            description="Copies of requests for comparison, by what became of them. Dropped: no engine was idle.",
            queries=(Query(rate("kairos_rollout_copies_total", "model, result"), "{{model}} {{result}}"),),
        ),
        Panel(
            title="Retries", unit="reqps", warn=0.1, width=12,
            description="Requests that the candidate failed, and the stable version was asked for.",
            queries=(Query(rate("kairos_rollout_retries_total", "model"), "{{model}}"),),
        ),
    ),
)
# fmt: on

QUALITY = Dashboard(
    "kairos-quality",
    "Kairos / Model quality",
    "Watched models against their baselines, their outcomes, what was done about it. Empty where nothing is watched.",
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
        OUTCOMES,
        TRIGGERS,
        ROLLOUTS,
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
