"""The report as one HTML page: nothing is loaded from anywhere, no script runs. Light and dark."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

from cost import chart
from cost.caveats import span
from cost.headline import usd
from cost.report import Report
from cost.terminal import crossover_cells, crossover_columns, money_lines, ms

_STYLE = """
:root{--paper:#fff;--ink:#1f2328;--soft:#59636e;--line:#e3e5e8;--tint:#f6f7f9;--warn:#fff4e0;--edge:#d55e00}
@media(prefers-color-scheme:dark){:root{--paper:#15181d;--ink:#e8e8e8;--soft:#a0a8b2;--line:#33383f;--tint:#1c2026;
--warn:#33271a;--edge:#ff8a3d}.light{display:none!important}}
@media(prefers-color-scheme:light){.dark{display:none!important}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 "Helvetica Neue",Helvetica,Arial,sans-serif}
main{max-width:52rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
.kicker{color:var(--soft);font-size:.85rem;margin:0 0 .4rem}h1{font-size:1.4rem;line-height:1.35;margin:0 0 1.5rem}
h2{font-size:1.1rem;margin:2.5rem 0 .6rem}.warn{background:var(--warn);border-left:4px solid var(--edge);
padding:.6rem .9rem;margin:.5rem 0;border-radius:0 4px 4px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.75rem;margin:1.5rem 0}
.tile{background:var(--tint);border-radius:8px;padding:.8rem 1rem}.tile b{display:block;font-size:1.35rem}
.tile span{color:var(--soft);font-size:.85rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{font-weight:normal;color:var(--soft);font-size:.85rem}th,td{text-align:right;padding:.4rem .6rem;
border-bottom:1px solid var(--line);white-space:nowrap}th:first-child,td:first-child{text-align:left;padding-left:0;
white-space:normal}tr.sub td{color:var(--soft);font-size:.92rem}tr.sum td{font-weight:600}
figure{margin:2rem 0}figcaption{color:var(--soft);font-size:.85rem}figure svg{width:100%;height:auto}
ul{padding-left:1.1rem;color:var(--soft);font-size:.92rem}
footer{margin-top:3rem;color:var(--soft);font-size:.85rem}
"""


def page(report: Report) -> str:
    """A whole document. All text from the ledger is escaped."""
    parts = [f'<p class="kicker">{escape(_span(report))}</p><h1>{escape(report.headline)}</h1>']
    parts += [f'<p class="warn">{escape(text)}</p>' for text in report.warnings]
    if report.inputs:
        parts += [_tiles(report), _figure(report), _crossover(report), _money(report), _sources(report)]
        parts += [_groups(report)] if report.groups else []
        parts.append("<h2>What this stands on</h2><ul>" + "".join(f"<li>{escape(a)}</li>" for a in report.assumptions))
        parts.append("</ul>")
    made = datetime.fromtimestamp(report.generated_us / 1e6, UTC)
    footer = f"<footer>Made by crossover report on {made:%Y-%m-%d %H:%M} UTC.</footer>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>Crossover report</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}{footer}</main></body></html>\n"
    )


def _span(report: Report) -> str:
    if report.from_us is None or report.until_us is None:
        return "Crossover report"
    first, last = (
        f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%d %H:%M}" for us in (report.from_us, report.until_us)
    )
    return f"Crossover report · {first} to {last} UTC ({span(report.days)})"


def _tiles(report: Report) -> str:
    share = {line.source: line.share for line in report.sources}
    tiles = [(f"{report.inputs:,}", "inputs answered" if not report.errors else "inputs, errors included")]
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


def _figure(report: Report) -> str:
    if report.traffic is None:
        return ""
    light, dark = (chart.svg(report, dark=dark) for dark in (False, True))
    label = escape(report.headline, quote=True)
    drawing = f'<div class="light">{light}</div><div class="dark">{dark}</div>'
    caption = f"<figcaption>{escape(' '.join(chart.caption(report)))}</figcaption>"
    return f'<h2>Cost against volume</h2><figure role="img" aria-label="{label}">{drawing}{caption}</figure>'


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


def _sources(report: Report) -> str:
    rows: list[tuple[str, tuple[str, ...]]] = []
    for line in report.sources:
        latency = (ms(line.p50_us), ms(line.p95_us), ms(line.p99_us))
        rows.append(("", (_NAMES[line.source], f"{line.inputs:,}", f"{line.share:.1%}", usd(line.cost_nano), *latency)))
    for stage in report.stages:
        latency = (ms(stage.p50_us), ms(stage.p95_us), ms(stage.p99_us))
        rows.append(("sub", (f"stage: {stage.stage}", f"{stage.inputs:,}", "", "", *latency)))
    for what, counts in (("degraded", report.degraded), ("error", report.errors)):
        rows += [
            ("sub", (f"{what}: {k}", f"{n:,}", f"{n / report.inputs:.1%}", "", "", "", "")) for k, n in counts.items()
        ]
    return _table("Who answered, and how fast", ("", "inputs", "share", "cost", "p50", "p95", "p99"), rows)


def _groups(report: Report) -> str:
    rows = [
        ("", (g.name, *(f"{n:,}" for n in (g.inputs, g.cache, g.local, g.frontier, g.degraded)), usd(g.cost_nano)))
        for g in report.groups
    ]
    return _table(f"By {report.by}", ("", "inputs", "cache", "local", "frontier", "degraded", "cost"), rows)


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f'<tr class="{kind}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for kind, cells in rows
    )
    return f'<h2>{escape(title)}</h2><div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
