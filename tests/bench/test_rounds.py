"""What a round saw: texts are counted as texts, and only what was computed for the request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def rounds(script: Callable[[str], Any]) -> Any:
    return script("rounds")


def test_an_answer_shared_with_another_request_or_incomplete_is_not_counted(rounds: Any, load: Any) -> None:
    def reply(body: bytes) -> Any:
        return load.Reply(0, 200, body, 0.0, 1.0)

    assert rounds.answered(reply(b'{"results":[{"label":"a","coalesced":false}]}'))
    assert not rounds.answered(reply(b'{"results":[{"label":"a","coalesced":true}]}'))
    assert not rounds.answered(reply(b'{"results":[{"error":{"type":"x"}}]}'))
    two = reply(b'{"results":[{"label":"a"},{"label":"b"}]}')
    assert rounds.answered(two, 2)
    assert not rounds.answered(two, 3)


def test_a_row_gives_medians_and_spread_and_counts_cpu_by_the_text(rounds: Any, load: Any) -> None:
    seen = [rounds.Round(load.Load(n, 0, 1.0, n, 1.0, 2.0, 0.1), 1.0, texts=32) for n in (100, 400, 200)]
    row = rounds.row("router", 8, seen, precision="int8")
    assert row["requests_per_second"] == 200
    assert row["requests_per_second_spread"] == [100, 400]
    assert row["server_cpu_ms_per_text"] == pytest.approx(5 / 32, rel=1e-3)
    assert row["answers"] == 700
    assert row["precision"] == "int8"
    assert seen[0].per_second == 3200


def test_lists_have_all_texts_of_their_size_once(rounds: Any, harness: Any) -> None:
    texts = [str(number) for number in range(70)]
    who = rounds.as_router(harness.Server("http://127.0.0.1:1", 0), texts, batch=32)
    sent = [json.loads(request.partition(b"\r\n\r\n")[2])["input"] for request in who.requests]
    assert sent == [texts[:32], texts[32:64]]
    assert who.texts == 32


def test_texts_come_in_one_fixed_order_that_is_not_the_files(rounds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSOVER_BENCH_DATA", raising=False)
    texts, origin = rounds.read_texts()
    assert texts == rounds.read_texts()[0]
    assert len(set(texts)) == len(texts) > 1000, "more than are ever in flight"
    assert "CROSSOVER_BENCH_DATA is not set" in origin


def test_a_median_with_a_missing_value_is_missing(rounds: Any) -> None:
    assert rounds.middle([3.0, 1.0, 2.0]) == 2.0
    assert rounds.middle([]) is None
    assert rounds.middle([1.0, float("nan"), 2.0]) is None


def test_who_is_parked_stands_still_and_goes_on_afterwards(rounds: Any, harness: Any) -> None:
    echo = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", echo], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None
    server = harness.Server("", process.pid)
    try:
        print("first", file=process.stdin)
        assert process.stdout.readline() == "first\n"
        with pytest.raises(ZeroDivisionError), rounds.parked([rounds.Contestant("echo", server, "", [])]):
            os.waitpid(process.pid, os.WUNTRACED)  # until it has stopped: a signal takes its time on a busy machine
            used = server.cpu_seconds()
            print("second", file=process.stdin)
            assert harness.psutil.Process(process.pid).status() == harness.psutil.STATUS_STOPPED
            assert server.cpu_seconds() == used
            raise ZeroDivisionError  # it goes on even so
        assert process.stdout.readline() == "second\n"
    finally:
        server.go_on()
        process.communicate(timeout=10)
