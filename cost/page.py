"""The report as one HTML page: nothing is loaded from anywhere. Light, dark and print.

Everything stands there without a script. With one, sliders look up what the one cost model computed beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib import resources
from typing import Any

import msgspec
import vl_convert

from cost import chart, history_charts, sliders, theme
from cost.caveats import UNCHECKED, span
from cost.headline import rounded, usd
from cost.history import History, LabelLine
from cost.options import Option
from cost.prices import PriceTable
from cost.report import Report
from cost.terminal import (
    OPTION_COLUMNS,
    QUALITY,
    SHARE_COLUMNS,
    STEP_COLUMNS,
    crossover_cells,
    crossover_columns,
    money_lines,
    ms,
    option_cells,
    share_cells,
    shown,
    step_cells,
    supposed,
    turning_of,
    why,
)
from cost.theme import PAGE


def page(report: Report, prices: PriceTable | None = None) -> str:
    """A whole document. All text from the ledger is escaped. Without scripts it says the same, without sliders.

    `prices`: the table that the report was made with; the shipped one if there is none.
    """
    parts = [f'<p class="kicker">{escape(_span(report))}</p><h1>{escape(report.headline)}</h1>']
    parts += [f'<p class="warn" role="note">{escape(text)}</p>' for text in (*supposed(report), *report.warnings)]
    scripts = ""
    spec = None if report.traffic is None else chart.spec(report, palette=PAGE, titled=False)
    if report.history is not None:
        parts += [
            _options(report),
            _cost(report, spec),
            _crossover(report),
            _thresholds(report),
            _tiles(report, report.history),
            _money(report),
        ]
        parts += [_shares(report), *_happened(report, report.history)]
        parts.append("<h2>What this stands on</h2><ul>" + "".join(f"<li>{escape(a)}</li>" for a in report.assumptions))
        parts.append("</ul>")
    if spec is not None:
        grid = sliders.grid(report, prices or PriceTable.load(), spec)
        scripts = (
            f'<script type="application/json" id="grid">{_inert(grid)}</script>'
            f"<script>{_vega()}</script><script>{_file('page.js')}</script>"
        )
    made = datetime.fromtimestamp(report.generated_us / 1e6, UTC)
    footer = f"<footer>Made by crossover report on {made:%Y-%m-%d %H:%M} UTC.</footer>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>Crossover report</title><style>{_file('page.css')}</style></head>"
        f"<body><main>{''.join(part for part in parts if part)}{footer}</main>{scripts}</body></html>\n"
    )


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as vl-convert carries them: nothing is fetched. 900 kB."""
    return _closed(str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")))


@cache
def _file(name: str) -> str:
    return resources.files("cost").joinpath(name).read_text(encoding="utf-8")


def _closed(script: str) -> str:
    """No text in a script may end it."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _inert(value: object) -> str:
    """JSON inside a page: no character of it can be markup."""
    return msgspec.json.encode(value).decode().replace("<", "\\u003c")


def _span(report: Report) -> str:
    if report.from_us is None or report.until_us is None:
        return "Crossover report"
    first, last = (
        f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%d %H:%M}" for us in (report.from_us, report.until_us)
    )
    return f"Crossover report · {first} to {last} UTC ({span(report.days)})"


def _tiles(report: Report, history: History) -> str:
    share = {line.source: line.share for line in history.sources}
    tiles = [(f"{report.inputs:,}", "inputs answered" if not history.errors else "inputs, errors included")]
    tiles += [(f"{share.get(source, 0):.0%}", f"by {name}") for source, name in _NAMES.items() if source != "error"]
    tiles.append((usd(report.paid_and_local_nano), "cost of this traffic"))
    if report.api_only.nano is not None:
        tiles.append((usd(report.api_only.nano), "had every miss been bought"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{v}</b><span>{t}</span></div>' for v, t in tiles)
        + "</div>"
    )


_NAMES = {"cache": "the cache", "local": "your own model", "frontier": "the frontier API", "error": "nobody: error"}


def _options(report: Report) -> str:
    if not report.options:
        return ""
    rows = "".join(
        f'<tr class="{_class(option, i)}">'
        + "".join(f"<td>{escape(cell)}</td>" for cell in (*option_cells(option)[:3], why(option)))
        + "</tr>"
        for i, option in enumerate(report.options)
    )
    heads = "".join(f'<th scope="col">{h}</th>' for h in (*OPTION_COLUMNS[:3], "what it takes"))
    return (
        f'<h2 id="ranked">What to do at <span id="ranked-at">{rounded(report.ranked_at)} requests a month</span></h2>'
        f'<div class="scroll"><table class="rank" id="rank" aria-labelledby="ranked"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="note">{escape(operations_note(report))}</p>'
    )


def operations_note(report: Report) -> str:
    """What the second column of dollars has in it."""
    what = report.operations
    return (
        f"Operations: {usd(what.nano)} a month of engineering time, {what.min_replicas} replicas, {what.audited:.0%} "
        f"of the local answers bought again as audits, {what.labels:,} labels a month. All assumed."
    )


def _class(option: Option, place: int) -> str:
    return "out" if option.ruled_out else "best" if place == 0 else ""


def _cost(report: Report, spec: dict[str, Any] | None) -> str:
    """The chart that the sliders move: drawn already, so that it is there without a script."""
    if spec is None:
        return ""
    told = escape(turning_of(report))
    return (
        f'<h2>Cost against volume</h2><p id="crossover" aria-live="polite">{told}</p>{sliders.controls(report)}'
        f'<figure><div id="chart" role="img" aria-label="{told}">{theme.svg(spec)}</div>'
        f"<figcaption>{escape(' '.join(chart.caption(report)))}</figcaption></figure>"
    )


def _happened(report: Report, history: History) -> list[str]:
    parts = [_sources(report, history)]
    if any(line.p99_us for line in history.sources) or history.stages:
        parts.append(_figure("Latency by source and stage", history_charts.latency(history, PAGE)))
    if any(period.cost_nano for period in history.periods):
        parts.append(_figure("Cost by source over time", history_charts.over_time(history, PAGE)))
    if any(line.cost_nano for line in history.labels):
        parts.append(_figure("The labels that cost most", history_charts.by_label(history, PAGE)))
        rows = [
            ("", (_label(line, history), f"{line.inputs:,}", f"{line.frontier:,}", usd(line.cost_nano), _each(line)))
            for line in history.labels
        ]
        parts.append(_table("Cost by label", ("", "inputs", "frontier", "cost", "a thousand"), rows))
    return [*parts, _calibration(report)]


def _thresholds(report: Report) -> str:
    """Cost and quality by threshold."""
    if not any(step.now for step in report.thresholds):
        return ""
    drawing = history_charts.thresholds(report.thresholds, PAGE)
    rows = [("sum" if step.now else "", step_cells(step)) for step in shown(report.thresholds)]
    title = f"Cost and quality by threshold ({report.threshold_on}, {rounded(report.ranked_at)} requests a month)"
    return _figure(title, drawing) + f'<p class="note">{escape(QUALITY)}</p>' + _table("", STEP_COLUMNS, rows)


def _calibration(report: Report) -> str:
    if not report.calibration:
        return f"<h2>Calibration</h2><p>{escape(UNCHECKED)}</p>"
    said = (
        "Of texts that the local model answered for want of a frontier, and the frontier at another time: the doubtful "
        "ones, not a sample of all. At each point: how many."
    )
    return _figure("Calibration", history_charts.calibration(report.calibration, PAGE)) + f'<p class="note">{said}</p>'


def _label(line: LabelLine, history: History) -> str:
    return f"{line.task}: {line.label}" if len({each.task for each in history.labels}) > 1 else line.label


def _each(line: LabelLine) -> str:
    return usd(round(1000 * line.cost_nano / line.inputs))


def _figure(title: str, spec: dict[str, Any]) -> str:
    title = escape(title)
    return f'<h2>{title}</h2><figure><div role="img" aria-label="{title}">{theme.svg(spec)}</div></figure>'


def _crossover(report: Report) -> str:
    if not report.crossover:
        return ""
    rows = [("", crossover_cells(line)) for line in report.crossover]
    return _table("Where your own model starts to pay (requests)", crossover_columns(report), rows)


def _money(report: Report) -> str:
    rows = []
    for text, amount in money_lines(report):
        kind = "sum" if text.startswith(("this router", "API-only")) else "sub" if text.startswith(" ") else ""
        rows.append((kind, (text.strip(), amount)))
    return _table("What it cost", ("", ""), rows)


def _sources(report: Report, history: History) -> str:
    rows: list[tuple[str, tuple[str, ...]]] = []
    for line in history.sources:
        latency = (ms(line.p50_us), ms(line.p95_us), ms(line.p99_us))
        rows.append(("", (_NAMES[line.source], f"{line.inputs:,}", f"{line.share:.1%}", usd(line.cost_nano), *latency)))
    for stage in history.stages:
        latency = (ms(stage.p50_us), ms(stage.p95_us), ms(stage.p99_us))
        rows.append(("sub", (f"stage: {stage.stage}", f"{stage.inputs:,}", "", "", *latency)))
    for what, counts in (("degraded", history.degraded), ("error", history.errors)):
        rows += [
            ("sub", (f"{what}: {k}", f"{n:,}", f"{n / report.inputs:.1%}", "", "", "", "")) for k, n in counts.items()
        ]
    return _table("Who answered, and how fast", ("", "inputs", "share", "cost", "p50", "p95", "p99"), rows)


def _shares(report: Report) -> str:
    rows = [("", share_cells(share, report)) for share in report.shares]
    return _table(f"Whose bill it is, by {report.by}", SHARE_COLUMNS, rows) if rows else ""


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr class="{kind}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for kind, cells in rows
    )
    name = escape(title or "Figures of the chart above", quote=True)
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return (
        f'{heading}<div class="scroll"><table aria-label="{name}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
