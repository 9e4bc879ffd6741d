"""Fills the tables of docs/engines.md, between their markers, from bench/out.

python bench/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from harness import OUT, ROOT

PAGE = ROOT / "docs" / "engines.md"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (("engines", engines), ("article", article), ("optimize", optimize)):
        if (OUT / f"{name}.json").exists():
            result = json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))
            missing = [f"- not run: {each['name']}: {each['reason']}" for each in result["not_run"]]
            lines = [where(result), "", *table(result), "", *missing, "" * bool(missing)]
            begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
            pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
            filled = "\n".join(lines).rstrip() + "\n"
            text = pattern.sub(lambda found, filled=filled: found[1] + filled + found[2], text)
    PAGE.write_text(text, encoding="utf-8")


def where(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return f"{machine['date'][:10]}, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores."


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*names: str) -> list[str]:
    return [row(*names), "|---" + "|--:" * (len(names) - 1) + "|"]


def spread(seen: dict[str, Any]) -> str:
    low, high = seen["texts_per_second_spread"]
    return f"{seen['texts_per_second']:,.0f} ({low:,.0f}-{high:,.0f})"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.2f}"


def engines(result: dict[str, Any]) -> Sequence[str]:
    lines = head(
        "engine",
        "a forward",
        "texts/s (spread)",
        "CPU ms",
        "label %",
        "accept %",
        "largest shift",
        "own head %",
        "neighbours: label %",
        "shift",
        "ready in s",
    )
    for seen in sorted(result["rows"], key=lambda seen: -float(seen["texts_per_second"])):
        fp32, others = seen["against_fp32"], seen["other_neighbours"]
        lines.append(
            row(
                seen["engine"],
                str(seen["texts_per_forward"]),
                spread(seen),
                f"{seen['cpu_ms_per_text']:.2f}",
                percent(fp32["label_changed"]),
                percent(fp32["accept_flipped"]),
                f"{fp32['shift']:.3f}",
                percent(seen["accuracy_own_head"]),
                percent(others["label_changed"]),
                f"{others['shift']:.1g}",
                f"{seen['ready_seconds']:.0f}",
            )
        )
    return lines


def article(result: dict[str, Any]) -> Sequence[str]:
    lines = head("setting", "alone p50 ms", "p99 ms", "texts/s (spread)", "CPU ms a text", "accuracy %")
    for seen in result["rows"]:
        lines.append(
            row(
                seen["setup"] + " *" * seen["engine_changed"],
                f"{seen['alone_p50_ms']:.1f}",
                f"{seen['p99_ms']:.0f}",
                spread(seen),
                f"{seen['server_cpu_ms']:.2f}",
                percent(seen["accuracy"]),
            )
        )
    return [*lines, "", *(f"- {note}" for note in result["notes"])]


def optimize(result: dict[str, Any]) -> Sequence[str]:
    lines = head("[model]", "connections", "requests/s (spread)", "p50 ms", "p99 ms", "CPU ms a text", "refused %")
    for seen in result["rows"]:
        low, high = seen["requests_per_second_spread"]
        lines.append(
            row(
                f"`{seen['model'].replace(chr(10), ', ')}`",
                str(seen["connections"]),
                f"{seen['requests_per_second']:,.0f} ({low:,.0f}-{high:,.0f})",
                f"{seen['p50_ms']:.1f}",
                f"{seen['p99_ms']:.1f}",
                f"{seen['server_cpu_ms_per_text']:.2f}",
                percent(seen["failures"] / (seen["failures"] + seen["answers"])),
            )
        )
    return lines


if __name__ == "__main__":
    main()
