"""What a fleet needs: bytes, hours and machines by phase, computed from rates that are measured here first.

python -m benchmarks.sizing [--encoders 1000] [--items 1e8] [--anchors 1e5] [--days 7] [--out docs/sizing.md]

The rates are of this machine, every core of it, on a quickstart's real encoders and on vectors of `WIDTH` dimensions. The
plan multiplies them; it knows no faster machine and no accelerator, which would be measured by running this there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 768
TEST = 1000
"""Held-out items that a pair is judged on, in the rate that is measured."""
ENCODERS = {"efficientnet-lite0": "image", "minilm-l6": "en"}


@dataclass(frozen=True)
class Phase:
    """One line of the plan: work in units, units a second of one machine, and what it leaves on disk."""

    name: str
    units: float
    unit: str
    rate: float
    bytes: float
    note: str = ""

    @property
    def hours(self) -> float:
        """Of one machine."""
        return self.units / self.rate / 3600

    def machines(self, days: float) -> int:
        """How many of these machines finish it in so many days."""
        return int(np.ceil(self.hours / (24 * days)))


def seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """The median of a few rounds, after one that warms up."""
    work()
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken))


def measure() -> dict[str, float]:
    """Rates of this machine, in units a second, and bytes where the name says so."""
    from align.evaluation import Anchors, Evaluation
    from align.maps.linear import Ridge
    from align.maps.orthogonal import Procrustes
    from align.moments import Moments
    from align.pair import split as split_items
    from registry import datasets, encoders

    rates: dict[str, float] = {}
    data = datasets.create("emoji")
    for name, column in ENCODERS.items():
        encoder = encoders.create(name)
        items = [data.read(column, row) for row in range(256)]
        step = encoder.batch_size
        work = [items[start : start + step] for start in range(0, len(items), step)]
        rates[f"embed {encoder.modality}"] = len(items) / seconds(lambda w=work, e=encoder: [e.embed(b) for b in w])
    rng = np.random.default_rng(0)
    n = 50_000
    X, Y = (rng.standard_normal((n, WIDTH), dtype=np.float32) for _ in range(2))
    folds = np.arange(n) % 5
    # Six spaces at once: what a space shares with its pairs is spread over them, as it is over more.
    tile = {str(i): rng.standard_normal((20_000, WIDTH), dtype=np.float32) for i in range(6)}
    rates["sums pair x item"] = 15 * 20_000 / seconds(lambda: Moments.all_pairs(tile, folds[:20_000]), 1)
    keys = [str(row) for row in range(10_000 + TEST)]
    split = split_items(keys, held_out=TEST / len(keys), n_folds=5, random_state=0)
    sides = [Anchors(side[split.anchors], split.folds) for side in (X, Y)]
    evaluation = Evaluation(*sides, X[split.held_out], Y[split.held_out], split)
    moments = evaluation._moments(True)  # taken already: they are the phase before

    def judge() -> None:
        for unfitted in (Ridge(), Procrustes()):
            evaluation.judge(unfitted.fit_moments(moments))

    rates["pair"] = 1 / seconds(judge)
    ridge = Ridge().fit_moments(moments)
    rates["translate item"] = n / seconds(lambda: ridge.transform(X))
    with tempfile.NamedTemporaryFile(dir=os.environ.get("SUTURE_HOME")) as file:
        block = rng.bytes(1 << 28)
        begun = time.perf_counter()
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        rates["disk byte"] = len(block) / (time.perf_counter() - begun)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.scale", "--spaces", "8", "--json", file.name],
            stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        scale = json.loads(Path(file.name).read_text())
    rates["record pair"] = 1000 / scale["record ms a child"]
    rates["record bytes a pair"] = scale["record bytes a child"]
    return rates


def plan(rates: dict[str, float], encoders: float, items: float, anchors: float) -> list[Phase]:
    """The phases of one night over all spaces. Half of the encoders take pictures, half take texts."""
    pairs = encoders * (encoders - 1)
    embed = 2 / (1 / rates["embed image"] + 1 / rates["embed text"])
    vectors = encoders * WIDTH * 2  # float16
    sums = pairs / 2 * 6 * WIDTH**2 * 8
    return [
        Phase("embed the anchors", encoders * anchors, "embeddings", embed, vectors * anchors),
        Phase("sums of all pairs", pairs / 2 * anchors, "pair x item", rates["sums pair x item"], 0,
              f"{_bytes(sums)} if kept; tiles of 20 x 20 encoders are fitted and dropped"),
        Phase("fit and judge all pairs", pairs, "pairs", rates["pair"], pairs * 4 * TEST * 4),
        Phase("record every pair", pairs, "child runs", rates["record pair"], pairs * rates["record bytes a pair"]),
        Phase("embed all items, every encoder", encoders * items, "embeddings", embed, vectors * items,
              "once; later nights embed what is new"),
        Phase("translate all items, one space", items, "vectors", min(rates["translate item"], rates["disk byte"] / (4 * WIDTH)),
              items * WIDTH * 4, "instead of embedding them again"),
    ]  # fmt: skip


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def _table(phases: list[Phase], days: float) -> str:
    lines = [
        f"| phase | work | rate of one machine | machine hours | machines for {days:g} days | on disk | |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {p.name} | {p.units:.3g} {p.unit} | {p.rate:,.3g}/s | {p.hours:,.3g} | {p.machines(days):,} | "
        f"{_bytes(p.bytes) if p.bytes else ''} | {p.note} |"
        for p in phases
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", type=float, default=1000)
    parser.add_argument("--items", type=float, default=1e8)
    parser.add_argument("--anchors", type=float, default=1e5)
    parser.add_argument("--days", type=float, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rates = measure()
    sizes = [(10, 1e4, 5e3), (30, 1e6, 5e4), (options.encoders, options.items, options.anchors)]
    lines = [
        "# Sizing",
        f"Made by `python -m benchmarks.sizing` on {os.cpu_count()} cores ({platform.machine()}, no accelerator). "
        "Every figure below follows from the rates of the first table, by multiplication. Nothing here was measured on a fleet.",
        "## Rates measured",
        "| what | a second |\n|---|---:|\n"
        + "\n".join(f"| {name} | {rate:,.4g} |" for name, rate in rates.items() if "bytes a" not in name),
        f"A child run takes {_bytes(rates['record bytes a pair'])} in MLflow. Vectors have {WIDTH} dimensions; a pair is "
        f"fitted by ridge and Procrustes from sums in five folds, and judged on {TEST:,} held-out items.",
    ]
    for encoders, items, anchors in sizes:
        title = f"## {encoders:,.0f} encoders x {items:,.0f} items, {anchors:,.0f} anchors"
        lines += [title, _table(plan(rates, encoders, items, anchors), options.days)]
    text = "\n\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
