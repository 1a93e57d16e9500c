"""PromQL in short."""

from __future__ import annotations

MODEL = 'instance=~"$instance", model=~"$model"'
SERVER = 'instance=~"$instance"'


def rate(metric: str, by: str = "", selector: str = MODEL) -> str:
    """Growth a second, summed up."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "model", selector: str = MODEL) -> str:
    """A percentile of a histogram."""
    both = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, {rate(f'{metric}_bucket', both, selector)})"


def mean(metric: str, by: str = "model", selector: str = MODEL) -> str:
    """The mean of a histogram."""
    return f"{rate(f'{metric}_sum', by, selector)} / {rate(f'{metric}_count', by, selector)}"


def total(metric: str, by: str = "", selector: str = MODEL) -> str:
    """A gauge, summed up."""
    return f"sum by ({by}) ({metric}{{{selector}}})"


def outcome(pattern: str) -> str:
    """Requests a second that ended so."""
    return f'sum by (model) (rate(kairos_requests_total{{{MODEL}, outcome=~"{pattern}"}}[$__rate_interval]))'
