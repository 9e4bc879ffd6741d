"""`crossover classify -f`: every row once, in order, whatever interrupts it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.cli.asking import Ask
from router.cli.classify_file import answer_file
from router.cli.rows import BadFile, read, resume
from router.problems import URN, ProblemError

Reply = Callable[[Sequence[str]], list[dict[str, Any]]]


def answer(text: str) -> dict[str, Any]:
    return {"label": text.upper(), "confidence": 0.5, "source": "local", "degraded": None}


def problem(kind: str) -> dict[str, Any]:
    return {"error": {"type": URN + kind, "detail": "because"}}


def starting(reply: Reply) -> Callable[[], Any]:
    @asynccontextmanager
    async def start() -> AsyncIterator[Ask]:
        async def ask(texts: Sequence[str]) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"results": reply(texts)}

        yield ask

    return start


def run(file: Path, out: Path, reply: Reply = lambda texts: [answer(text) for text in texts], size: int = 2) -> int:
    return answer_file(file, out, "text", starting(reply), size)


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


TEXTS = ['with "quotes"', "two\nlines", "a, comma", "wide: ü 字", "a\rreturn", '"\n', "plain"]


def csv_of(texts: Sequence[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerows([["id", "text"], *([str(i), text] for i, text in enumerate(texts))])
    return line.getvalue().encode()


def jsonl_of(texts: Sequence[str]) -> bytes:
    return b"".join(json.dumps({"id": i, "text": text}).encode() + b"\n" for i, text in enumerate(texts))


@pytest.mark.parametrize(("suffix", "made"), [("csv", csv_of), ("jsonl", jsonl_of)])
def test_wherever_a_run_was_cut_the_next_one_ends_with_the_same_file(
    tmp_path: Path, suffix: str, made: Callable[[Sequence[str]], bytes]
) -> None:
    """At every byte; only the rows that were not there are asked."""
    file, out = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    file.write_bytes(made(TEXTS))
    run(file, out)
    whole = out.read_bytes()
    for end in range(len(whole) + 1):
        out.write_bytes(whole[:end])
        asked: list[str] = []

        def reply(texts: Sequence[str], asked: list[str] = asked) -> list[dict[str, Any]]:
            asked.extend(texts)
            return [answer(text) for text in texts]

        run(file, out, reply)
        assert out.read_bytes() == whole, end
        assert asked == TEXTS[len(TEXTS) - len(asked) :]
    assert asked == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=6))
def test_texts_come_out_as_they_went_in(tmp_path: Path, texts: list[str]) -> None:
    """Quotes, line breaks, NUL, anything that UTF-8 can hold."""
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_bytes(csv_of(texts))
    out.unlink(missing_ok=True)
    run(file, out)
    header, *rows = table(out)
    assert header == ["id", "text", "label", "confidence", "source", "degraded", "error"]
    assert [row[1] for row in rows] == texts


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"my notes\n",
        b"id,text\n0,x\n",
        b"id,text,label,confidence,source,degraded,error\nz,y,,,,,\n",
        b"\0",
    ],
)
def test_a_file_that_is_no_begun_answer_is_left_alone(tmp_path: Path, content: bytes) -> None:
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_bytes(csv_of(["x"]))
    out.write_bytes(content)
    with pytest.raises(BadFile, match="something else"):
        run(file, out)
    assert out.read_bytes() == content


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_bytes(csv_of(TEXTS))

    def reply(texts: Sequence[str]) -> list[dict[str, Any]]:
        with pytest.raises(BadFile, match="another run"):
            run(file, out)
        return [answer(text) for text in texts]

    run(file, out, reply)


def test_a_row_that_can_not_be_answered_stops_no_other(tmp_path: Path) -> None:
    """No JSON, no text, a text of which a request fails whole, one that its time was too short for."""
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"text":"a"}\nnope\n{"x":1}\n{"text":"late"}\n{"text":"huge"}\n{"text":"b","label":"mine"}\n')

    def reply(texts: Sequence[str]) -> list[dict[str, Any]]:
        if "huge" in texts:
            raise ProblemError("too-large", "over a megabyte")
        return [problem("deadline") if text == "late" and len(texts) > 1 else answer(text) for text in texts]

    assert run(file, out, reply, size=10) == 3
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.get("label") for row in rows] == ["A", None, None, "LATE", None, "mine"]
    assert rows[5]["answer_label"] == "B"
    assert [row["error"] for row in rows[1:3]] == ["invalid: not JSON", "invalid: no text in 'text'"]
    assert rows[4]["error"] == "too-large: over a megabyte"


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_bytes(csv_of(TEXTS))
    refused: list[Any] = []

    def reply(texts: Sequence[str]) -> list[dict[str, Any]]:
        if len(refused) < 3:
            refused.append(texts)
            raise ProblemError("overloaded", "full", retry_after=0.001)
        return [answer(text) for text in texts]

    assert run(file, out, reply) == 0
    assert len(table(out)) == len(TEXTS) + 1


@pytest.mark.parametrize("kind", ["unauthorized", "unknown-task", "draining", "model-failed"])
def test_what_no_row_is_the_reason_of_stops_the_run_and_marks_no_row(tmp_path: Path, kind: str) -> None:
    """What was answered before stays."""
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_bytes(csv_of(TEXTS))

    def reply(texts: Sequence[str]) -> list[dict[str, Any]]:
        if TEXTS[4] in texts:
            raise ProblemError(kind, "no")
        return [answer(text) for text in texts]

    with pytest.raises(ProblemError):
        run(file, out, reply)
    assert [row[1] for row in table(out)[1:]] in ([], TEXTS[:2], TEXTS[:4])
    run(file, out)
    assert [row[1] for row in table(out)[1:]] == TEXTS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a,b\n1,2\n", "no column 'text'"),
        (b"", "no column 'text'"),
        (b"text\n\xff\n", "not UTF-8"),
        (b'text\n"open\n', "not CSV"),
    ],
)
def test_a_file_that_can_not_be_read_says_why(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(content)
    with pytest.raises(BadFile, match=told):
        run(file, tmp_path / "out.csv")


def test_answers_have_the_format_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(csv_of(TEXTS))
    with pytest.raises(BadFile, match="format of"):
        run(file, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_row_with_too_many_fields_is_an_error_of_its_own(tmp_path: Path) -> None:
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    file.write_bytes(b"id,text\n1,a\n2,b,c\n\n3\n4,d\n")
    assert run(file, out) == 2
    assert [row[2] for row in table(out)[1:]] == ["A", "", "", "D"]
    with out.open("rb+") as file_of_answers, file.open("rb") as source:
        assert resume(file_of_answers, out, read(source, file, "text"))[0] == 4


# --- the command


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "router", "classify", *map(str, arguments)]


def test_a_killed_run_is_gone_on_with_and_no_row_is_lost_or_repeated(tmp_path: Path) -> None:
    """kill -9 after the first rows; the second run answers only the others. In process, nothing is spent."""
    file, out = tmp_path / "in.csv", tmp_path / "out.csv"
    texts = [f'{number}: "I lost\nmy card", what now' for number in range(3000)]
    file.write_bytes(csv_of(texts))
    process = subprocess.Popen(command("-f", file, "-o", out), stderr=subprocess.PIPE)
    while process.poll() is None and (not out.exists() or len(out.read_bytes()) < 5_000):
        pass
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    if process.stderr:
        process.stderr.close()
    before = out.read_bytes()
    assert len(before) < file.stat().st_size
    done = subprocess.run(command("-f", file, "-o", out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "were there)" in done.stderr
    assert "0 errors" in done.stderr
    assert out.read_bytes().startswith(before[: before.rindex(b"\n")])
    rows = table(out)[1:]
    assert [row[1] for row in rows] == texts
    assert {row[4] for row in rows} <= {"local", "cache"}, "some were computed, and not yet written"
    assert {(row[5], row[6]) for row in rows} == {("", "")}


def test_a_file_goes_through_a_service_and_through_a_pipe(
    serve: Callable[..., Any], banking: str, tmp_path: Path
) -> None:
    """JSONL from standard input to standard output; a service that is not there says so."""
    service = serve(banking)
    rows = '{"text": "I lost my card", "n": 1}\n{"text": "how do I change my PIN"}\n{"text": " "}\n'
    done = subprocess.run(command("-f", "-", "--url", service.url), input=rows, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["label"] for row in found] == ["lost_or_stolen_card", "change_pin", None]
    assert (found[0]["n"], found[2]["error"][:6]) == (1, "empty:")
    assert done.stderr.startswith("3 rows: 1 error, 0 degraded")
    service.stop()
    gone = subprocess.run(command("-f", "-", "--url", service.url), input=rows, capture_output=True, text=True)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "connection refused" in gone.stderr
    assert "crossover serve" in gone.stderr


@pytest.mark.parametrize("arguments", [(), ("-f", "x.csv", "text"), ("-o", "y", "text"), ("-f", "no-such.csv")])
def test_what_is_to_be_classified_is_given_once(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text\na\n")
    done = subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_rows_without_an_answer_are_not_taken_for_answered(tmp_path: Path) -> None:
    """A copy of the input is no begun output: it is left alone."""
    import subprocess
    import sys

    rows = b'{"text":"a"}\n{"text":"b"}\n'
    (tmp_path / "in.jsonl").write_bytes(rows)
    (tmp_path / "out.jsonl").write_bytes(rows)
    done = subprocess.run(
        [sys.executable, "-m", "router", "classify", "-f", "in.jsonl", "-o", "out.jsonl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == rows
