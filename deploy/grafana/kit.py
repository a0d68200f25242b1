"""The few kinds of panel that Weir's dashboards are made of.

Every panel has a title that asks a question, a description that says what is good, a unit and the
dashboard's datasource. Colours mean the same everywhere: green flows, yellow is careful, red is
lost, blue is an operator's doing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from grafana_foundation_sdk.builders import (
    bargauge,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models

GREEN: Final = "green"
YELLOW: Final = "yellow"
RED: Final = "red"
BLUE: Final = "blue"
GREY: Final = "text"

SOURCE: Final = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
CLUSTER: Final = 'weir_cluster=~"$cluster"'
"""Selector of every query: one Grafana may watch several Weir clusters."""

PHASES: Final = {
    0: ("healthy", GREEN),
    1: ("suspect", YELLOW),
    2: ("failed", RED),
    3: ("recovering", BLUE),
}
VERDICTS: Final = {
    0: ("healthy", GREEN),
    1: ("suspect", YELLOW),
    2: ("unhealthy", RED),
    3: ("unknown", GREY),
}
BREAKERS: Final = {0: ("closed", GREEN), 1: ("half open", YELLOW), 2: ("open", RED)}
NO_YES: Final = {0: ("no", GREY), 1: ("yes", YELLOW)}

Step = tuple[float | None, str]
"""From which value on which colour; None is the base."""


class AnyPanel(Protocol):
    """Builder of a panel of any kind."""

    def build(self) -> models.Panel:
        """Return the panel."""
        ...


def newest(expr: str) -> str:
    """Keep only replicas that serve the newest plan: one that is cut off shows an old one."""
    epoch = f"weir_plan_epoch{{{CLUSTER}}}"
    return (
        f"({expr} and on (weir_cluster, job, instance) "
        f"({epoch} == on (weir_cluster) group_left () max by (weir_cluster) ({epoch})))"
    )


def coded(metric: str, label: str, values: Mapping[int, str], by: str, more: str = "") -> str:
    """Return one number per `by`: which of the 0/1 series of `metric` is 1."""
    selector = f"{CLUSTER}{', ' + more if more else ''}"
    terms = [
        f'{code} * {metric}{{{selector}, {label}="{value}"}}' for code, value in values.items()
    ]
    return f"max by ({by}) ({newest('(' + ' or '.join(terms) + ')')})"


def _query(expr: str, legend: str, ref: str, *, instant: bool = False) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(ref)
    return query.instant() if instant else query.range()


def _steps(steps: Sequence[Step]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def _words(words: Mapping[int, tuple[str, str]]) -> list[Any]:
    return [
        models.ValueMap(
            options={
                str(value): models.ValueMappingResult(text=text, color=color, index=index)
                for index, (value, (text, color)) in enumerate(words.items())
            }
        )
    ]


def number(
    title: str,
    expr: str,
    *,
    text: str,
    unit: str = "short",
    steps: Sequence[Step] = ((None, GREY),),
    words: Mapping[int, tuple[str, str]] | None = None,
    legend: str = "",
    decimals: int | None = None,
    width: int = 4,
    height: int = 4,
) -> AnyPanel:
    """One big number (or one per series when `legend` names them), coloured by its meaning."""
    panel = (
        stat.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(height)
        .thresholds(_steps(steps))
        .color_mode(common.BigValueColorMode.BACKGROUND)
        .graph_mode(common.BigValueGraphMode.NONE)
        .text_mode(
            common.BigValueTextMode.VALUE_AND_NAME if legend else common.BigValueTextMode.VALUE
        )
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_query(expr, legend, "A"))
    )
    if words:
        panel.mappings(_words(words))
    if decimals is not None:
        panel.decimals(decimals)
    return panel


def lines(
    title: str,
    queries: Sequence[tuple[str, str]],
    *,
    text: str,
    unit: str,
    stacked: bool = False,
    limit: float | None = None,
    low: float | None = 0,
    high: float | None = None,
    width: int = 12,
    height: int = 8,
) -> AnyPanel:
    """Draw (expression, legend) over time. `limit` is a red line not to cross."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(height)
        .line_width(2)
        .fill_opacity(40 if stacked else 5)
        .show_points(common.VisibilityMode.NEVER)
        .span_nulls(span_nulls=False)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if low is not None:
        panel.min(low)
    if high is not None:
        panel.max(high)
    if limit is not None:
        panel.thresholds(_steps([(None, GREEN), (limit, RED)])).thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(
                common.GraphThresholdsStyleMode.DASHED
            )
        )
    for number_, (expr, legend) in enumerate(queries):
        panel.with_target(_query(expr, legend, chr(ord("A") + number_)))
    return panel


def states(
    title: str,
    expr: str,
    legend: str,
    words: Mapping[int, tuple[str, str]],
    *,
    text: str,
    width: int = 12,
    height: int = 6,
) -> AnyPanel:
    """Draw a band per series whose colour is its state."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit("none")
        .span(width)
        .height(height)
        .mappings(_words(words))
        .show_value(common.VisibilityMode.AUTO)
        .merge_values(merge_values=True)
        .fill_opacity(80)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(show_legend=False)
        )
        .with_target(_query(expr, legend, "A"))
    )


def bars(
    title: str,
    expr: str,
    legend: str,
    *,
    text: str,
    unit: str,
    steps: Sequence[Step],
    high: float | None = None,
    width: int = 12,
    height: int = 8,
) -> AnyPanel:
    """Draw one horizontal bar per series, its value now."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(height)
        .min(0)
        .thresholds(_steps(steps))
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_query(expr, legend, "A", instant=True))
    )
    if high is not None:
        panel.max(high)
    return panel


def rows(
    title: str,
    expr: str,
    *,
    text: str,
    unit: str = "short",
    hide: Sequence[str] = ("Time",),
    width: int = 12,
    height: int = 8,
) -> AnyPanel:
    """Draw a table with one row per series, its labels as columns."""
    query = _query(expr, "", "A", instant=True).format(prometheus_format())
    return (
        table.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(height)
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize", options={"excludeByName": dict.fromkeys(hide, True)}
            )
        )
        .with_target(query)
    )


def prometheus_format() -> Any:
    """Return the result format of tables."""
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat  # noqa: PLC0415

    return PromQueryFormat.TABLE


def row(title: str) -> dashboard.Row:
    """Return a heading."""
    return dashboard.Row(title)


def values_of(label: str, metric: str, *, name: str, text: str) -> dashboard.QueryVariable:
    """Return a variable with the values that `label` has on `metric`; all of them by default."""
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .description(text)
        .datasource(SOURCE)
        .query(f"label_values({metric}, {label})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(models.VariableOption(text="All", value="$__all"))
    )


def board(
    uid: str, title: str, text: str, *, variables: Sequence[dashboard.QueryVariable] = ()
) -> dashboard.Dashboard:
    """Return an empty dashboard with its variables and links to the others."""
    made = (
        dashboard.Dashboard(f"Weir / {title}")
        .uid(uid)
        .description(text)
        .tags(["weir"])
        .refresh("5s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Weir")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["weir"])
            .as_dropdown(as_dropdown=True)
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .with_variable(
            values_of(
                "weir_cluster",
                "weir_build_info",
                name="cluster",
                text="Target label of the scrape configuration; All when it is not set.",
            )
        )
    )
    for variable in variables:
        made.with_variable(variable)
    return made
