"""Reports on hand-made books, with figures worked out by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from rich.console import Console

from cost import chart, terminal
from cost.crossover import Crossing, Hardware
from cost.page import page
from cost.prices import Price, PriceTable
from cost.report import CrossoverLine, Report, Supposed, build
from cost.report_schema import schema
from cost.types import InputRow, Intent, LedgerError, Outcome, Usage

Make = Callable[..., Any]
DAY = 86_400_000_000
BOX = Hardware("box", 0.0816, 100.0, "told")


def flat(text: str) -> str:
    return " ".join(text.split())


def told(report: Report) -> str:
    out = StringIO()
    terminal.show(report, Console(file=out, width=80))
    return out.getvalue()


@pytest.fixture
def traffic(row: Make, intent: Make, noon: int) -> Callable[..., tuple[list[InputRow], list[tuple[Intent, Outcome]]]]:
    """25 bought, 50 local, 20 cached, 5 failed; the provider bills 100 tokens and 2 for each of ours, and 4 out."""

    def make(model: str = "gpt-6-luna", days: float = 0.0) -> tuple[list[InputRow], list[tuple[Intent, Outcome]]]:
        rows: list[InputRow] = []
        calls = []
        for i in range(25):
            tokens = 5 + i
            cost = (100 + 2 * tokens) * 100 + 4 * 500  # $0.10 and $0.50 per million
            usage = Usage(input=100 + 2 * tokens, output=4)
            outcome = Outcome("settled", model, usage, cost, "2026-11-21", latency_us=300_000)
            calls.append((intent(f"f{i}", model=model, tokens=tokens, estimate_nano=10**6), outcome))
            rows.append(
                row(f"f{i}", source="frontier", tokens=tokens, cost_nano=cost, total_us=10**6 + i, frontier_us=9)
            )
        rows += [row(f"l{i}", local_us=2000, local_nano=3, cost_nano=3, total_us=1000 * (i + 1)) for i in range(50)]
        rows += [row(f"c{i}", source="cache", answered_by="local", total_us=400, cache_us=300) for i in range(20)]
        rows += [row(f"e{i}", source="error", error="over-length") for i in range(5)]
        rows[-1] = msgspec.structs.replace(rows[-1], at_us=noon + int(days * DAY))
        return rows, calls

    return make


def test_the_figures_are_those_worked_out_by_hand(books: Make, traffic: Make, noon: int) -> None:
    report = build([books(*traffic())], volume_per_month=10**7, hardware=[BOX], clock=lambda: noon / 1e6)
    assert [(s.source, s.inputs, s.share) for s in report.history.sources] == [
        ("cache", 20, 0.20),
        ("local", 50, 0.50),
        ("frontier", 25, 0.25),
        ("error", 5, 0.05),
    ]
    local = report.history.sources[1]
    assert (local.p50_us, local.p95_us, local.p99_us, local.cost_nano) == (25_000, 48_000, 50_000, 150)
    assert report.history.errors == {"over-length": 5}
    # 25 * (12,000 + 200 tokens), tokens 5 to 29
    assert report.spend.settled_nano == 25 * 12_000 + 200 * sum(range(5, 30)) == 385_000
    # the other 50 misses had 10 tokens each
    assert report.api_only.nano == 385_000 + 50 * (12_000 + 200 * 10)
    assert (report.api_only.calls, report.api_only.measured_calls) == (75, 25)
    (call,) = report.api_only.models
    assert (call.prefix_tokens, call.tokens_per_token, call.learned) == (pytest.approx(100), pytest.approx(2), True)
    traffic_found = report.traffic
    assert traffic_found is not None
    assert (traffic_found.hit, traffic_found.escalated) == (pytest.approx(20 / 95), pytest.approx(25 / 75))
    saved = 75 / 95 * (1_085_000 / 75) * (50 / 75)
    month = 0.0816 * 730 * 1e9
    (line,) = report.crossover
    assert line.crossing is not None and line.crossing_with_ops is not None
    assert line.crossing.last == pytest.approx(month / saved, abs=2)
    assert line.crossing_with_ops.last == pytest.approx((month + 500e9) / saved, rel=0.2)  # a second replica by then
    assert line.saving_nano == pytest.approx(saved * 10**7 - month, abs=2)
    assert report.headline.startswith("At 10 million requests a month: Don't self-host")
    assert "buying every answer as now costs $114.21" in report.headline
    assert "Your own model pays from 7.82 million requests a month (257,000 a day) on a box." in flat(told(report))


def test_calls_in_batches_count_with_what_they_cost_and_teach_what_single_calls_do(
    books: Make, traffic: Make, noon: int
) -> None:
    """Half of the calls at half of the price: the sums are those of the ledger, the learned price stays."""
    rows, calls = traffic()
    single = build([books(rows, calls)], hardware=[BOX], clock=lambda: noon / 1e6)
    half = [
        (msgspec.structs.replace(i, batch=True), msgspec.structs.replace(o, cost_nano=o.cost_nano // 2))
        if n % 2
        else (i, o)
        for n, (i, o) in enumerate(calls)
    ]
    saved = sum(outcome.cost_nano // 2 for n, (_, outcome) in enumerate(calls) if n % 2)
    paid = {i.request_id: o.cost_nano for i, o in half}
    rows = [msgspec.structs.replace(row, cost_nano=paid.get(row.request_id, row.cost_nano)) for row in rows]
    batched = build([books(rows, half, name="b")], hardware=[BOX], clock=lambda: noon / 1e6)
    assert batched.spend.settled_nano == single.spend.settled_nano - saved
    assert (single.spend.batch_nano, batched.spend.batch_nano) == (0, saved)
    assert batched.api_only.models == single.api_only.models
    assert batched.api_only.nano == (single.api_only.nano or 0) - saved
    assert "12 of its 25 calls were made in batches" in " ".join(batched.assumptions)
    assert "of all this in batches" in told(batched)
    assert "of all this in batches" not in told(single)


def test_a_model_paid_by_the_hour_counts_with_what_its_calls_were_booked_with(
    books: Make, traffic: Make, noon: int
) -> None:
    """Also one whose tokens have a list price elsewhere; and at $0 an hour nothing is missing."""
    for nano, kind in ((300, "$1.2/h"), (0, "$0/h")):
        rows, calls = traffic()
        calls = [(i, msgspec.structs.replace(o, cost_nano=nano, price_version=kind)) for i, o in calls]
        rows = [msgspec.structs.replace(r, cost_nano=nano) if r.source == "frontier" else r for r in rows]
        report = build([books(rows, calls, name=f"h{nano}")], hardware=[BOX], clock=lambda: noon / 1e6)
        assert (report.spend.settled_nano, report.spend.unpriced) == (25 * nano, 0)
        assert (report.api_only.nano, report.api_only.call_nano) == (75 * nano, nano)
        assert (report.api_only.call_nano_cached, report.api_only.call_nano_plain) == (None, None)
        assert any("gpt-6-luna is paid by the hour" in line for line in report.assumptions)
        assert not any("shorter than what" in line for line in report.assumptions)


def test_a_simulated_frontier_is_priced_as_the_real_one_and_says_so(books: Make, traffic: Make, noon: int) -> None:
    real = build([books(*traffic())], hardware=[BOX], clock=lambda: noon / 1e6)
    played = build([books(*traffic("simulated/gpt-6-luna"), name="s")], hardware=[BOX], clock=lambda: noon / 1e6)
    assert played.crossover == real.crossover
    assert (real.simulated, played.simulated) == (False, True)
    assert played.spend.simulated_nano == 385_000
    assert "SIMULATED" in played.warnings[0]
    assert "Simulated" in played.headline
    assert "SIMULATED" in told(played)


def test_no_crossover_is_said_when_it_is_the_truth(books: Make, traffic: Make, noon: int) -> None:
    report = build([books(*traffic())], hardware=[Hardware("farm", 50.0, 1.0)], clock=lambda: noon / 1e6)
    assert "Don't self-host" in report.headline
    assert "No crossover: buying every answer is cheaper at any volume than your own model on a farm." in flat(
        told(report)
    )
    assert chart.png(report)[:4] == b"\x89PNG"
    assert "never" in page(report)


def test_a_month_s_figure_takes_fourteen_days_or_a_volume(books: Make, traffic: Make, noon: int) -> None:
    short = build([books(*traffic(days=13))], hardware=[BOX], clock=lambda: noon / 1e6)
    assert (short.volume, short.crossover[0].saving_nano) == (None, None)
    assert any("--volume" in line and "No interval" in line for line in short.assumptions)
    given = build([books(*traffic(days=13), name="g")], volume_per_month=5, hardware=[BOX], clock=lambda: noon / 1e6)
    assert (given.volume, given.volume_basis) == (5, "given")
    assert any("No interval" in line for line in given.assumptions)
    long = build([books(*traffic(days=20), name="d")], hardware=[BOX], clock=lambda: noon / 1e6)
    assert (long.volume, long.volume_basis) == (round(100 / 20 * 730 / 24), "measured")
    assert "Don't self-host" in long.headline
    assert (short.ranked_at, long.ranked_at) == (1_000_000, long.volume)
    assert "(an example: name yours with --volume)" in short.headline


def test_an_interval_comes_from_resampled_days_and_holds_the_point(
    books: Make, row: Make, intent: Make, noon: int
) -> None:
    rows, calls = [], []
    for day in range(20):
        for i in range(10):
            name, at = f"{day}-{i}", noon + day * DAY + i
            if i < 2 + day % 3:  # two to four of ten are escalated
                cost = 12_000 + 200 * (i + day)
                outcome = Outcome("settled", "gpt-6-luna", Usage(input=100 + 2 * (i + day), output=4), cost, "v")
                calls.append((intent(name, tokens=i + day, at_us=at), outcome))
                rows.append(row(name, source="frontier", at_us=at, tokens=i + day))
            else:
                rows.append(row(name, at_us=at))
    path = books(rows, calls)
    line, other = build([path], hardware=[BOX, Hardware("farm", 50.0, 1.0)], clock=lambda: noon / 1e6).crossover
    assert line.crossing and line.interval and line.interval.low and line.interval.high
    assert 0.8 * line.crossing.last < line.interval.low < line.crossing.last < line.interval.high
    assert line.interval.high < 1.2 * line.crossing.last
    assert other.interval and other.interval.high is None and other.interval.never == 1
    again = build([path], hardware=[BOX], clock=lambda: noon / 1e6)
    assert again.crossover[0].interval == line.interval
    assert any("resampled days" in text for text in again.assumptions)
    assert any("these intervals are too narrow" in text for text in again.assumptions)
    thirteen = build([path], since_us=noon + 7 * DAY, hardware=[BOX], clock=lambda: noon / 1e6)
    assert thirteen.crossover[0].interval is None
    assert not any("too narrow" in text for text in thirteen.assumptions)


def test_too_few_calls_to_learn_from_is_said_and_one_token_counts_as_one(books: Make, traffic: Make, noon: int) -> None:
    rows, calls = traffic()
    report = build([books(rows, calls[:2])], hardware=[BOX], clock=lambda: noon / 1e6)
    (call,) = report.api_only.models
    assert (call.learned, call.tokens_per_token, call.prefix_tokens) == (False, 1.0, 100 + 5.5)
    assert any("2 settled calls are too few" in line for line in report.assumptions)


def test_what_a_cached_prompt_would_change_is_told(books: Make, row: Make, intent: Make, noon: int) -> None:
    calls = []
    for i in range(30):
        usage = Usage(input=2000 + i, output=4)
        calls.append((intent(f"f{i}", tokens=i + 1), Outcome("settled", "gpt-6-luna", usage, 202_000 + 100 * i, "v")))
    rows = [row(f"f{i}", source="frontier", tokens=i + 1) for i in range(30)]
    report = build([books(rows, calls)], hardware=[BOX], clock=lambda: noon / 1e6)
    # 1,999 tokens before the text, read at a tenth of $0.10 per million; 15.5 tokens of text; 4 out
    assert report.api_only.call_nano_cached == pytest.approx(1999 * 10 + 15.5 * 100 + 2000)
    assert report.api_only.call_nano_plain == pytest.approx((1999 + 15.5) * 100 + 2000)
    (line,) = [line for line in report.assumptions if "prompt cache" in line]
    assert "0% were read" in line
    assert "$23.54 a million calls" in line
    assert "$203.45 a million calls" in line


def test_a_crossover_from_a_handful_of_calls_says_so_in_the_first_sentence(
    books: Make, row: Make, intent: Make, noon: int
) -> None:
    for count, guess in ((2, True), (30, False)):
        calls = [
            (
                intent(f"f{i}", tokens=i + 1),
                Outcome("settled", "gpt-6-luna", Usage(input=2000 + i, output=4), 200_000, "v"),
            )
            for i in range(count)
        ]
        rows = [row(f"f{i}", source="frontier", tokens=i + 1) for i in range(count)]
        headline = build([books(rows, calls, name=str(count))], hardware=[BOX], clock=lambda: noon / 1e6).headline
        assert ("rough guess" in headline) == guess


def test_an_unpriced_call_and_an_old_price_list_are_warned_about(
    books: Make, row: Make, intent: Make, noon: int
) -> None:
    call = (intent("r", model="own"), Outcome("settled", "own", Usage(input=9, output=1), 0))
    path = books([row("r", source="frontier")], [call])
    warnings = build([path], clock=lambda: noon / 1e6 + 61 * 86_400).warnings
    assert any("61 days old" in warning for warning in warnings)
    assert any("no price" in warning for warning in warnings)
    assert not any("days old" in warning for warning in build([path], clock=lambda: noon / 1e6 + 60 * 86_400).warnings)


def test_several_ledgers_are_read_as_one_and_a_window_cuts_all(books: Make, row: Make, noon: int) -> None:
    paths = [books([row(f"{n}1"), row(f"{n}2", at_us=noon - DAY)], name=n) for n in "ab"]
    assert build(paths).inputs == 4
    assert build(paths, since_us=noon).inputs == 2
    with pytest.raises(LedgerError):
        build([paths[0].with_name("absent.db")])


def test_uncertain_calls_count_in_full_and_are_pointed_at(books: Make, row: Make, intent: Make) -> None:
    report = build([books([row("r", degraded="deadline")], [(intent("r", estimate_nano=700), Outcome("uncertain"))])])
    assert (report.spend.uncertain_nano, report.spend.paid_nano) == (700, 700)
    assert any("uncertain" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], "no requests yet"),
        ([{}], "no frontier call was settled"),
        ([{"source": "cache"}] * 3, "The cache answered everything".lower()),
        ([{"degraded": "budget"}] * 3, "no frontier call was settled"),
        ([{"source": "error", "error": "warming"}] * 3, "every request failed"),
    ],
)
def test_thin_books_get_a_sane_answer_everywhere(books: Make, row: Make, fields: list[Any], said: str) -> None:
    report = build([books([row(f"r{i}", **one) for i, one in enumerate(fields)])], by="task", volume_per_month=10**6)
    assert said in report.headline.lower()
    assert said.split()[0] in told(report).lower()
    assert said in page(report).lower()
    assert msgspec.json.decode(msgspec.json.encode(report))["inputs"] == len(fields)
    with pytest.raises(ValueError):
        chart.spec(report)


def test_tenants_and_tasks_have_their_own_lines(books: Make, row: Make) -> None:
    path = books(
        [row("a", tenant="x", cost_nano=5, local_nano=5), row("b", tenant="x", source="cache"), row("c", tenant="y")]
    )
    shares = build([path], by="tenant").shares
    assert [(s.name, s.inputs, s.cache, s.local, s.total_nano) for s in shares] == [
        ("x", 2, 1, 1, 5),
        ("y", 1, 0, 1, 0),
    ]


def test_the_parts_of_the_bill_add_up_to_the_whole(books: Make, traffic: Make, row: Make, intent: Make) -> None:
    """Uncertain calls, calls in flight and calls without an input included."""
    rows, calls = traffic()
    rows.append(row("u", tenant="other", degraded="deadline", local_nano=7, cost_nano=7))
    calls += [
        (intent("u", tenant="other", estimate_nano=700), Outcome("uncertain")),
        (intent("gone", tenant="z"), None),
    ]
    path = books(rows, calls)
    for by in ("tenant", "task"):
        report = build([path], by=by)
        assert sum(share.total_nano for share in report.shares) == report.paid_and_local_nano
    assert [s.name for s in build([path], by="tenant").shares] == ["local", "z", "other"]


def test_capacity_is_measured_where_something_ran_here_and_is_the_model_s_time_only(
    books: Make, traffic: Make, noon: int
) -> None:
    report = build([books(*traffic())], clock=lambda: noon / 1e6)
    cpu, gpu = (line.hardware for line in report.crossover)
    assert cpu.requests_per_second == 2 / 0.002  # two threads, 2 ms a text
    assert "measured" in cpu.basis
    assert "assumed" in gpu.basis
    assert any("model's time only" in line for line in report.assumptions)


def test_configured_prices_are_used(books: Make, traffic: Make, noon: int) -> None:
    table = PriceTable.load({"gpt-6-luna": Price(input=10**9, output=5 * 10**9)})  # ten times the list
    report = build([books(*traffic())], prices=table, hardware=[BOX], clock=lambda: noon / 1e6)
    assert report.price_version == "2026-11-21+config"
    assert report.api_only.nano == 385_000 + 10 * 50 * 14_000  # what was bought stays what it cost


def test_the_chart_is_large_enough_for_a_slide_and_tells_the_point(books: Make, traffic: Make, noon: int) -> None:
    report = build([books(*traffic())], volume_per_month=10**7, hardware=[BOX], clock=lambda: noon / 1e6)
    image = chart.png(report)
    assert struct.unpack(">II", image[16:24]) >= (1400, 800)
    drawn = chart.svg(report)
    for text in (
        "Buy every answer",
        "Own model on box",
        "box pays from 7.82 million",
        "10 million a month",
        "Cost a month",
    ):
        assert text in drawn


def test_options_are_ranked_before_anything_else_and_say_what_is_assumed(books: Make, traffic: Make, noon: int) -> None:
    report = build([books(*traffic("gpt-6-sol"))], volume_per_month=10**7, hardware=[BOX], clock=lambda: noon / 1e6)
    costs = [option.monthly_nano for option in report.options]
    assert costs == sorted(costs)
    by_name = {option.name: option for option in report.options}
    assert by_name["as now"].monthly_nano == by_name["as now"].monthly_with_ops_nano
    # A month of the box, 500 dollars of people and a second box; audits and labels besides.
    assert by_name["hybrid"].monthly_with_ops_nano - by_name["hybrid"].monthly_nano > 559 * 10**9
    said = told(report)
    assert said.index("cheapest first") < said.index("Who answered")
    assert "ASSUMED" in said[: said.index("Who answered")]
    assert "That these answer well enough is ASSUMED: " in flat(said)
    assert "Without operations: no engineering time" in flat(said)


def test_what_if_changes_the_figures_and_says_so_first(books: Make, traffic: Make, noon: int, tmp_path: Path) -> None:
    rows, calls = traffic(days=20)
    rows = [
        msgspec.structs.replace(r, confidence=0.8 if i % 2 else 0.9) if r.source == "local" else r
        for i, r in enumerate(rows)
    ]
    path = books(rows, calls)

    def asked(**what: Any) -> Report:
        return build([path], hardware=[BOX], supposed=Supposed(**what), clock=lambda: noon / 1e6)

    base, strict, hits = asked(), asked(threshold=0.85), asked(hit=0.5)
    assert base.traffic and strict.traffic and hits.traffic
    assert strict.traffic.escalated == pytest.approx((25 + 25) / 75)  # half of the 50 local answers were less sure
    assert hits.traffic.hit == 0.5
    assert "WHAT IF: a threshold of 0.85 escalates 66.7% instead of 33.3%." in flat(told(strict))
    assert "WHAT IF" not in told(base)
    assert base.crossover[0].interval is not None
    assert strict.crossover[0].interval is None  # days did not have that threshold
    dear = PriceTable.load({"gpt-6-luna": Price(input=10**9, output=5 * 10**9)})  # ten times the list
    tenfold = asked(prices=dear)
    assert tenfold.traffic and tenfold.traffic.call_nano == pytest.approx(10 * base.traffic.call_nano)
    assert tenfold.spend == base.spend  # what was paid stays paid
    with pytest.raises(LedgerError, match="lacks a price"):
        asked(prices=PriceTable("x", dear.as_of, "nobody", {}))
    (now,) = [step for step in base.thresholds if step.now]
    assert now.threshold == 0.8
    assert "0.8 now" in told(base)


def test_bands_hold_the_curves_from_fourteen_days_on(books: Make, row: Make, intent: Make, noon: int) -> None:
    rows, calls = [], []
    for day in range(16):
        for i in range(6):
            name, at = f"{day}-{i}", noon + day * DAY + i
            if i < 1 + day % 3:
                outcome = Outcome("settled", "gpt-6-luna", Usage(input=200, output=4), 22_000, "v")
                calls.append((intent(name, at_us=at), outcome))
            rows.append(row(name, source="frontier" if i < 1 + day % 3 else "local", at_us=at))
    report = build([books(rows, calls)], hardware=[BOX], clock=lambda: noon / 1e6)
    own = dict(zip(report.volumes, report.curves[1].nano, strict=True))
    bands = [band for band in report.bands if band.who == report.curves[1].who]
    assert bands
    assert all(band.low_nano <= own[band.volume] <= band.high_nano for band in bands)
    assert bands[-1].low_nano < bands[-1].high_nano
    assert '"bands"' in str(chart.spec(report)).replace("'", '"')


def test_latency_of_many_rows_is_that_of_a_sample_and_says_so(
    books: Make, row: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cost.history.SAMPLE", 100)
    rows = [row(f"r{i}", total_us=i + 1, local_us=1) for i in range(1000)]
    report = build([books(rows)])
    assert report.history is not None
    (line,) = report.history.sources
    assert (report.history.sampled, line.inputs) == (100, 1000)
    assert (line.p50_us, line.p99_us) == (pytest.approx(500, abs=20), pytest.approx(990, abs=20))
    assert any("percentiles are of 100 rows" in text for text in report.assumptions)


def test_calibration_comes_from_texts_that_both_have_answered(books: Make, row: Make, intent: Make) -> None:
    rows, calls = [], []
    for i in range(10):
        digest = bytes([i]) * 16
        rows.append(row(f"d{i}", degraded="deadline", confidence=0.45, label="a" if i < 7 else "b", text_digest=digest))
        rows.append(row(f"f{i}", source="frontier", label="a", text_digest=digest))
        calls.append((intent(f"f{i}"), Outcome("settled", "gpt-6-luna", Usage(input=9, output=1), 5, "v")))
    report = build([books(rows, calls)])
    (tenth,) = report.calibration
    assert (tenth.low, tenth.high, tenth.judged, tenth.agreement) == (0.4, 0.5, 10, 0.7)
    assert tenth.agreement_low < 0.7 < tenth.agreement_high
    assert not any("no calibration" in text for text in report.assumptions)
    assert "How sure the local model was" in page(report)


def test_json_is_what_the_published_schema_says(books: Make, traffic: Make, noon: int) -> None:
    """Change the report's types: python -m cost.report_schema > docs/report.schema.json"""
    published = Path(__file__).resolve().parents[2] / "docs" / "report.schema.json"
    assert published.read_bytes() == schema()
    checker = jsonschema.Draft202012Validator(json.loads(schema()))
    checker.check_schema(json.loads(schema()))
    for name, rows in (("full", traffic(days=20)), ("empty", ([], []))):
        report = build([books(*rows, name=name)], by="task", clock=lambda: noon / 1e6)
        checker.validate(json.loads(msgspec.json.encode(report)))
    with pytest.raises(jsonschema.ValidationError):
        checker.validate({"headline": 1})


def test_curves_that_cross_twice_show_both_volumes() -> None:
    line = CrossoverLine(BOX, Crossing(100, 200), None, None, None)
    assert terminal.crossover_cells(line) == ("box", "100, for good 200", "7", "never")


def test_the_report_fits_eighty_columns(books: Make, traffic: Make, tmp_path: Path) -> None:
    report = build([books(*traffic("simulated/gpt-6-luna"))], by="tenant", volume_per_month=2 * 10**6)
    assert all(len(line) <= 80 for line in told(report).splitlines())
    assert "…" not in told(report)
