"""What a Grafana dashboard is made of: panels in rows, laid out from left to right in 24 columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and how its series are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture. Every panel says what it shows, in which unit, and from where on that is worrying."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    """`timeseries`, `stat`, `heatmap` or `state-timeline`."""
    warn: float | None = None
    """Yellow from here on. Where `alarm` is below it, everything is mirrored: low is bad."""
    alarm: float | None = None
    """Red from here on."""
    width: int = 8
    height: int = 8
    stack: bool = False
    most: float | None = None
    """Upper end of the axis."""
    exemplars: bool = False

    def thresholds(self) -> Json:
        """Steps in Grafana's form."""
        warn, alarm = self.warn, self.alarm
        if alarm is None:
            steps = [("green", None)] if warn is None else [("green", None), ("yellow", warn)]
        elif warn is not None and alarm < warn:
            steps = [("red", None), ("yellow", alarm), ("green", warn)]
        else:
            steps = [("green", None), *([] if warn is None else [("yellow", warn)]), ("red", alarm)]
        return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Rows of panels, each with a heading."""

    uid: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    tags: tuple[str, ...] = field(default=("kairos",))

    def as_json(self) -> Json:
        """The dashboard as Grafana provisions it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": list(self.tags),
            "schemaVersion": 39,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": _variables()},
            "links": [{"type": "dashboards", "tags": ["kairos"], "title": "Kairos", "asDropdown": True}],
            "panels": _laid_out(self.rows),
        }


def _variables() -> list[Json]:
    def choice(name: str, label: str, query: str) -> Json:
        return {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"text": "All", "value": "$__all"},
        }

    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        choice("instance", "Server", "label_values(kairos_info, instance)"),
        choice("model", "Model", 'label_values(kairos_requests_total{model!=""}, model)'),
    ]


def _laid_out(rows: tuple[tuple[str, tuple[Panel, ...]], ...]) -> list[Json]:
    panels: list[Json] = []
    y = 0
    for heading, members in rows:
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": heading, "gridPos": place, "panels": []})
        x, y, tallest = 0, y + 1, 0
        for panel in members:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return panels


def _panel(panel: Panel) -> Json:
    form = "heatmap" if panel.kind == "heatmap" else "time_series"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "format": form,
            "exemplar": panel.exemplars,
        }
        for index, query in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _defaults(panel: Panel) -> Json:
    defaults: Json = {"unit": panel.unit, "thresholds": panel.thresholds(), "color": {"mode": "palette-classic"}}
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    if panel.kind == "timeseries":
        limits = "off" if panel.warn is None and panel.alarm is None else "dashed"
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stack else 8,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stack else "none"},
            "thresholdsStyle": {"mode": limits},
        }
    elif panel.kind in ("stat", "state-timeline"):
        defaults["color"] = {"mode": "thresholds"}
    return defaults


def _options(panel: Panel) -> Json:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"}
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "color": {"scheme": "Turbo", "mode": "scheme", "exponent": 0.5, "scale": "exponential"},
            "yAxis": {"unit": panel.unit},
            "exemplars": {"color": "rgba(255,255,255,0.8)"},
            "tooltip": {"mode": "single", "yHistogram": True},
            "cellGap": 1,
        }
    if panel.kind == "state-timeline":
        return {"mergeValues": True, "showValue": "never", "legend": {"displayMode": "list"}}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
