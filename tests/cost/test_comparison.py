"""Statistics are the textbooks', and the cheapest adequate is named only as surely as the sample allows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from cost.comparison import (
    Comparison,
    Contender,
    Paired,
    headline,
    judged,
    keep,
    kept,
    mcnemar,
    paired_interval,
    past_call_nano,
    percentile,
    rows_needed,
    wilson,
)


def test_the_interval_of_a_share_is_wilsons() -> None:
    """8 of 10, and the ends."""
    assert wilson(8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 10)[0] == 0.0
    assert 0.7 < wilson(10, 10)[0] < wilson(10, 10)[1] <= 1.0


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """1 against 9: twice the tail (1 + 10) / 1024."""
    assert mcnemar(1, 9) == mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert 0 <= mcnemar(10, 3000) < 1e-100


def test_a_difference_without_discordant_rows_still_has_a_width() -> None:
    low, high = paired_interval(0, 0, 300)
    assert low == pytest.approx(-high)
    assert 0.005 < high < 0.02
    low, high = paired_interval(better=10, worse=30, of=1000)
    assert low < 0.02 < high
    # Bonett and Price by hand: (31 - 11) / 1002, and 1.96 sqrt((42 / 1002 - (20 / 1002)^2) / 1002).
    assert (low + high) / 2 == pytest.approx(20 / 1002)
    assert (high - low) / 2 == pytest.approx(1.959964 * ((42 / 1002 - (20 / 1002) ** 2) / 1002) ** 0.5)


def test_percentiles_are_ranks_that_were_seen() -> None:
    assert [percentile(list(range(1, 101)), share) for share in (50, 95, 100)] == [50, 95, 100]
    assert percentile([7], 95) == 7
    assert percentile([], 50) is None


def contender(
    name: str, right: int, usd: float | None, *, against: tuple[int, int] | None = None, rows: int = 1000
) -> Contender:
    return Contender(
        name=name,
        model=f"{name}-1",
        answered_by=(f"{name}-1",),
        simulated=False,
        asked=rows,
        answered=rows,
        judged=rows,
        right=right,
        accuracy=right / rows,
        against_best=None if against is None else Paired.of(*against, rows),
        nano_per_million=None if usd is None else round(usd * 1e9),
    )


def comparison(*contenders: Contender, within: float = 0.02, gold: bool = True) -> Comparison:
    return judged(Comparison("t", 0.0, 1000, 1000, 0, gold, within, True, "2026-11-21", contenders))


def test_the_cheapest_that_loses_little_enough_is_named_with_what_it_may_lose() -> None:
    big, small, tiny = (
        contender("big", 950, 900.0),
        contender("small", 945, 90.0, against=(5, 10)),
        contender("tiny", 850, 1.0, against=(10, 110)),
    )
    found = comparison(big, small, tiny)
    assert (found.best, found.cheapest, found.sure, found.rows_needed) == ("big", "small", True, None)
    said = headline(found)
    assert said.startswith("Cheapest adequate: small: 0.5 points below the best (big), at $90.00 per million.")
    assert "loses at most 1.3 points" in said


def test_a_sample_that_is_too_small_says_so_and_how_many_rows_would_tell() -> None:
    big = contender("big", 50, 900.0, rows=55)
    small = contender("small", 50, 90.0, against=(2, 2), rows=55)
    found = comparison(big, small)
    assert (found.cheapest, found.sure) == ("small", False)
    assert found.rows_needed is not None
    assert found.rows_needed > 300
    assert "too small to be sure" in headline(found)
    assert found.undecided == ()
    worse = comparison(big, small, contender("tiny", 47, 1.0, against=(2, 5), rows=55))
    assert (worse.cheapest, worse.undecided) == ("small", ("tiny",))
    assert headline(worse).endswith("Cheaper, and not ruled out by so few rows: tiny.")
    assert rows_needed(Paired.of(0, 30, 1000), 0.02) is None  # three points are never within two


def test_the_most_accurate_may_be_the_cheapest_and_of_equals_the_cheaper_is_the_best() -> None:
    found = comparison(contender("big", 900, 900.0), contender("local", 900, 1.0))
    assert (found.best, found.cheapest, found.sure) == ("local", "local", True)
    assert "the most accurate itself" in headline(found)


def test_without_gold_or_price_nobody_is_named() -> None:
    unjudged = msgspec.structs.replace(contender("a", 0, 1.0), accuracy=None)
    assert comparison(unjudged, gold=False).cheapest is None
    assert "No gold labels" in headline(comparison(unjudged, gold=False))
    assert "Nobody was judged" in headline(comparison(unjudged))
    unpriced = comparison(contender("a", 900, None))
    assert (unpriced.best, unpriced.cheapest) == ("a", None)
    assert "no price" in headline(unpriced)


def test_what_is_kept_is_read_again_and_what_is_none_is_nothing(tmp_path: Path) -> None:
    found = comparison(contender("a", 900, 9.0), contender("b", 899, 1.0, against=(1, 2)))
    path = tmp_path / "compare" / "t.json"
    assert kept(path) is None
    keep(path, found)
    assert kept(path) == found
    path.write_text("{}")
    assert kept(path) is None
    assert past_call_nano(tmp_path / "no.db", "t", "a", "a-1") is None


def test_the_report_can_read_it_without_a_model_or_an_sdk() -> None:
    code = "import sys, cost.comparison; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "scipy", "anthropic", "openai", "litestar", "rich", "click"} & set(loaded)
