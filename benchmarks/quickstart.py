"""The quickstart twice, as a newcomer runs it: wall time by phase, and peak memory of the whole process tree.

python -m benchmarks.quickstart [--json results.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

TARGETS = {"first": 180.0, "not encoding": 60.0, "second": 30.0, "RssAnon GB": 4.0}


def rss_anon(process: psutil.Process) -> int:
    """Bytes of anonymous memory of a process and its descendants."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            status = Path(f"/proc/{one.pid}/status").read_text()
            total += next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
        except (OSError, StopIteration, psutil.Error):
            continue
    return total


def run(home: Path) -> dict[str, Any]:
    """One `suture run` in a process of its own."""
    environment = {**os.environ, "SUTURE_HOME": str(home)}
    begun = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", "--json"], env=environment, stdout=subprocess.PIPE, text=True
    )
    peak, watched = 0, psutil.Process(child.pid)
    while child.poll() is None:
        try:
            peak = max(peak, rss_anon(watched))
        except psutil.Error:
            break
        time.sleep(0.2)
    wall = time.perf_counter() - begun
    output = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise SystemExit(f"suture run failed with {child.returncode}")
    return {"wall": wall, "rss_anon_gb": peak / 1e9, "timings": json.loads(output)["timings"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="suture-bench-") as folder:
        first, second = run(Path(folder)), run(Path(folder))
    rest = first["wall"] - first["timings"]["embed"]
    for name, value, unit in (
        ("first", first["wall"], "s"),
        ("not encoding", rest, "s"),
        ("second", second["wall"], "s"),
        ("RssAnon GB", max(first["rss_anon_gb"], second["rss_anon_gb"]), "GB"),
    ):
        print(f"{name:<14}{value:8.1f} {unit:<3} (at most {TARGETS[name]:g})")
    for title, made in (("first run", first), ("second run", second)):
        print(f"\n{title}, by phase (s):")
        for phase, seconds in made["timings"].items():
            print(f"  {phase:<24}{seconds:7.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"first": first, "second": second}, indent=1))


if __name__ == "__main__":
    main()
