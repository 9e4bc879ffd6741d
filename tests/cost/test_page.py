"""The page: what a browser would load or run, what it says without a script, what its sliders look up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cost.crossover import crossing, hybrid_nano
from cost.hardware import Hardware
from cost.headline import turning
from cost.page import page
from cost.report import Report, build
from cost.sliders import positions
from cost.types import Outcome, Usage

Make = Callable[..., Any]
BOX = Hardware("</script>box", 0.0816, 100.0, "told")


class Read(HTMLParser):
    """What a browser would fetch, what it would run, and each element's text by id."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.labelled: set[str] = set()
        self.inputs: list[str] = []
        self._script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")
        if tag in ("img", "iframe", "object", "embed", "image", "use") or (
            tag == "link" and given.get("href") != "data:,"
        ):
            self.loads.append(tag)
        self.loads += [f"{name}={value}" for name, value in attrs if name in ("src", "srcset", "action", "xlink:href")]
        self.loads += [name for name, _ in attrs if name.startswith("on")]
        if tag == "label" and given.get("for"):
            self.labelled.add(str(given["for"]))
        if tag == "input":
            self.inputs.append(str(given["id"]))

    def handle_endtag(self, tag: str) -> None:
        self._script = self._script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data


def read(html: str) -> Read:
    found = Read()
    found.feed(html)
    return found


@pytest.fixture
def report(books: Make, row: Make, intent: Make, noon: int) -> Report:
    """30 bought, 60 local of two confidences, 10 hits; names that would be markup."""
    rows, calls = [], []
    for i in range(30):
        outcome = Outcome("settled", "gpt-6-sol", Usage(input=200 + i, output=4), 440_000 + 2000 * i, "v")
        calls.append((intent(f"f{i}", model="gpt-6-sol", tokens=i + 1), outcome))
        rows.append(row(f"f{i}", source="frontier", tokens=i + 1, label="</script><b>", cost_nano=440_000, total_us=9))
    rows += [
        row(f"l{i}", confidence=0.7 if i % 2 else 0.95, local_us=900, total_us=1000, label="<i>&") for i in range(60)
    ]
    rows += [row(f"c{i}", source="cache", tenant="<script>alert(1)</script>", total_us=300) for i in range(10)]
    return build([books(rows, calls)], by="tenant", volume_per_month=10**6, hardware=[BOX], clock=lambda: noon / 1e6)


def test_the_page_loads_nothing_and_escapes_what_it_shows(report: Report) -> None:
    html = page(report)
    found = read(html)
    assert found.loads == []
    assert len(found.scripts) == 3  # the grid, Vega, ours: no text of the ledger ended one early
    without = html
    for script in found.scripts:
        without = without.replace(script, "")
    assert not re.search(r"url\(\s*['\"]?(https?:|//)|@import", without)
    assert set(re.findall(r"https?://[^\s\"'<)]+", without)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "&lt;script&gt;" in without
    assert "<i>&" not in without
    assert "prefers-color-scheme" in without and "@media print" in without
    assert set(found.inputs) == {"volume", "threshold"} == found.labelled


def test_without_a_script_everything_is_there(report: Report) -> None:
    html = page(report)
    static = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert static.count("<svg") >= 4
    for text in (
        *(option.basis for option in report.options),
        *report.assumptions,
        "Cost by source over time",
        "Latency by source and stage",
        "Calibration",
    ):
        assert escape(text) in static
    assert "pays from" in static


def test_sliders_look_up_what_the_one_model_computed(report: Report) -> None:
    grid = json.loads(read(page(report)).scripts[0])
    stop = grid["told"].index("1 million requests a month")
    assert grid["volumes"][grid["stops"][stop]] == 10**6
    shown = positions(report)
    assert [setting["told"] for setting in grid["settings"]] == [position.told for position in shown]
    now = next(i for i, position in enumerate(shown) if position.now)
    at = {option["name"].split(" (")[0]: option for option in grid["settings"][now]["options"]}
    ranked = {option.name: option for option in report.options}
    for name in ("hybrid", "local only"):
        assert at[name]["usd"][stop] == pytest.approx(ranked[name].monthly_nano / 1e9, rel=1e-5)
        assert at[name]["ops"][stop] == pytest.approx(ranked[name].monthly_with_ops_nano / 1e9, rel=1e-5)
    for setting, position in zip(grid["settings"], shown, strict=True):
        assert setting["crossover"] == turning([(BOX.name, crossing(position.traffic, BOX))])
        costs = [float(hybrid_nano(position.traffic, BOX, volume)) / 1e9 for volume in grid["volumes"]]
        assert setting["curves"][1] == pytest.approx(costs, rel=1e-5)
    assert len({setting["crossover"] for setting in grid["settings"]}) > 1


def test_below_today_s_threshold_a_band_shows_what_is_not_known(report: Report) -> None:
    shown = positions(report)
    grid = json.loads(read(page(report)).scripts[0])
    lower = [i for i, position in enumerate(shown) if position.least is not None]
    assert lower and all("to" in shown[i].told for i in lower)
    assert all(band["low"] < band["high"] for i in lower for band in grid["settings"][i]["bands"])
    assert grid["settings"][lower[0]]["bands"]


def test_a_report_without_a_crossover_has_no_script(books: Make, row: Make, tmp_path: Path) -> None:
    for name, rows in (("none", []), ("thin", [row("r")])):
        assert read(page(build([books(rows, name=name)]))).scripts == []
