"""The JSON Schema of `crossover report --json`, from the report's own types.

python -m cost.report_schema > docs/report.schema.json
"""

from __future__ import annotations

import sys

import msgspec

from cost.report import Report


def schema() -> bytes:
    """Draft 2020-12."""
    found = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "crossover report --json",
        **msgspec.json.schema(Report),
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(schema())
