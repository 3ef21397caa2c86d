"""The ratios of docs/performance.md, measured in one run and set beside those that were committed.

Runs the scripts below one after the other, each in a process of its own on one thread, collects what they report,
prints a table and writes `benchmarks/results.json` with machine, versions and day of each. A ratio more than 20 %
worse than the committed one is marked. Seconds depend on the machine and on what else it does; ratios, measured in
turns within one process, hardly do.

    make bench                                             # or
    python benchmarks/suite.py [--only directions,start] [--keep]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
WORSE = 0.2
SCRIPTS = {
    "training_step": [],
    "decoder_step": [],
    "directions": [],
    "mixture_fit": ["100"],
    "workers": [],
    "evaluation": [],
    "start": [],
    "sampler_speed": ["train.epochs=100", "sampler.steps=600"],
    "tune_sharing": [],
    "streaming": [],
    "sampling": [],
    "seconds_to_mmd2": ["--steps", "100", "300", "1000"],
}


def machine() -> dict[str, Any]:
    """What the figures are of."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []  # fmt: skip
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "ray")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def there() -> list[dict[str, Any]]:
    """The ratios of the file as it is."""
    return json.loads(RESULTS.read_text())["ratios"] if RESULTS.exists() else []


def committed() -> list[dict[str, Any]]:
    """The ratios of the last commit; where there is no git, of the file as it is."""
    shown = subprocess.run(
        ["git", "show", f"HEAD:./{RESULTS.name}"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return there() if shown.returncode else json.loads(shown.stdout)["ratios"]


def measured(script: str, arguments: list[str]) -> list[dict[str, Any]] | None:
    """What a script reports, None if it fails; its output goes through."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "BENCH_RESULTS": file.name}
        command = [sys.executable, str(FOLDER / f"{script}.py"), *arguments]
        if subprocess.run(command, env=environment, check=False).returncode:
            return None
        return [json.loads(line) | {"script": script} for line in Path(file.name).read_text().splitlines()]


def change(row: dict[str, Any], before: float | None) -> tuple[str, bool]:
    """(how a ratio has changed, whether it is more than 20 % worse).

    Example:
        >>> change({"ratio": 3.0, "better": "lower"}, 2.0), change({"ratio": 3.0, "better": "higher"}, 2.0)
        (('+50 %', True), ('+50 %', False))
    """
    if not before:
        return "new", False
    share = row["ratio"] / before - 1.0
    loss = share if row["better"] == "lower" else -share
    return f"{100 * share:+.0f} %", loss > WORSE


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="some of: " + ", ".join(SCRIPTS))
    parser.add_argument("--keep", action="store_true", help="leave benchmarks/results.json as it is")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",") if options.only else list(SCRIPTS)
    if unknown := set(chosen) - set(SCRIPTS):
        parser.error(f"no such script: {', '.join(sorted(unknown))}; one of {', '.join(SCRIPTS)}")
    was, of_today = {row["name"]: row["ratio"] for row in committed()}, machine()
    started, failed = time.perf_counter(), []
    rows: list[dict[str, Any]] = []
    for number, script in enumerate(chosen, 1):
        print(f"== {number}/{len(chosen)} {script}, {time.perf_counter() - started:.0f} s so far", flush=True)
        if (found := measured(script, SCRIPTS[script])) is None:
            print(f"== {script} FAILED", flush=True)
            failed.append(script)
        else:
            rows += [row | of_today for row in found]
    lines, worse = ["| ratio | measured | goal | committed | change |", "|---|---|---|---|---|"], []
    for row in rows:
        before = was.get(row["name"])
        words, bad = change(row, before)
        worse += [row["name"]] * bad
        goal = "–" if row["goal"] is None else f"{'≤' if row['better'] == 'lower' else '≥'} {row['goal']:g}"
        earlier = "–" if before is None else f"{before:.3g}"
        lines.append(f"| {row['name']} | {row['ratio']:.3g} | {goal} | {earlier} | {words}{' **worse**' * bad} |")
    print("\n" + "\n".join(lines))
    print(
        f"\n{time.perf_counter() - started:.0f} s" + (f"; more than 20 % worse: {', '.join(worse)}" if worse else "")
    )
    if not options.keep:
        new = {row["script"] for row in rows}  # of which nothing older stays, names that are no more included
        kept = [row for row in there() if row["script"] not in new]
        RESULTS.write_text(json.dumps({"ratios": kept + rows}, indent=1) + "\n")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
