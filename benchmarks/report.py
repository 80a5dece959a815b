"""Write benchmarks/README.md from the records of benchmarks/results.

    python benchmarks/report.py
    python benchmarks/report.py --results=runs/bench --readme=runs/bench/README.md

Every figure comes from a record; a record made at sizes where nothing is measured is refused.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ORDER = (
    "estimator_cost",
    "throughput_cpu",
    "inference_cpu",
    "throughput_gpu",
    "gpu_profile",
    "gpu_kernels",
    "startup",
    "input_wait",
    "growth",
    "scaling",
    "seeds",
    "method_step_time",
    "diagnostics_cost",
    "gradient_direction",
)
HEAD = """# Benchmarks

Written by `python benchmarks/report.py` from the records in [results](results); every table names
the command that makes it again. A speed is a ratio of medians from one run in which the sides take
turns: on a machine that others use too, an absolute time says nothing. What was predicted before
each change, and what came of it, stands in [NOTES.md](NOTES.md).

`--tiny` runs any of them in seconds, at sizes where nothing is measured; CI does so.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md")
    args = parser.parse_args()
    records = {path.stem: json.loads(path.read_text()) for path in args.results.glob("*.json")}
    if not records:
        print(f"error: no records in {args.results}: run a benchmark with --out", file=sys.stderr)
        return 1
    for name, record in records.items():
        if record["tiny"] and args.results == HERE / "results":
            print(f"error: {name} was made with --tiny: run it without", file=sys.stderr)
            return 1
    names = sorted(records, key=lambda name: (name not in ORDER, (*ORDER, name).index(name)))
    folder = os.path.relpath(args.results, args.readme.parent)
    parts = [HEAD, goals(records, names)]
    parts += [section(records[name], folder) for name in names]
    args.readme.write_text("\n".join(parts))
    print(f"{args.readme}: {len(records)} records")
    return 0


def goals(records: dict[str, Any], names: list[str]) -> str:
    rows = [
        [
            f"[{name}](#{name})",
            goal["what"],
            goal["measured"] or "-",
            MARKS[goal["met"]] + (", see the remark" if records[name].get("remark") else ""),
        ]
        for name in names
        for goal in records[name]["goals"]
    ]
    return "## Goals\n\n" + markdown(["benchmark", "goal", "measured", ""], rows)


MARKS = {True: "reached", False: "**not reached**", None: "not measured"}


def section(record: dict[str, Any], folder: str) -> str:
    parts = [f"## {record['name']}", record["question"]]
    if record["tiny"]:
        parts.append("**Made with --tiny: nothing here is a measurement.**")
    if record["answer"]:
        parts.append(record["answer"])
    if record.get("remark"):  # which older records lack
        parts.append(f"**{record['remark']}**")
    parts.append(f"    {record['command']}")
    parts.append(made_with(record["environment"]))
    parts += [f"![{name}]({folder}/{name})" for name in record["figures"]]
    for table in record["tables"]:
        parts.append(f"### {table['title']}")
        if table["note"]:
            parts.append(table["note"])
        parts.append(markdown(table["columns"], table["rows"]).rstrip())
    return "\n\n".join(parts) + "\n"


def made_with(environment: dict[str, Any]) -> str:
    revision = (environment["revision"] or "unknown")[:8]
    packages = environment["packages"]
    flags = environment["xla_flags"]
    return (
        f"{environment['device']} ({environment['cpu_cores']} cores), Python "
        f"{environment['python']}, jax {packages['jax']}"
        f"{', XLA_FLAGS ' + flags if flags else ''}, revision {revision}"
        f"{' with changes' if environment['dirty'] else ''}."
    )


def markdown(columns: list[str], rows: list[list[Any]]) -> str:
    numeric = [
        all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(columns))
    ]
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [[cell(value) for value in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
