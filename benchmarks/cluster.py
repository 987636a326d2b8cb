"""Throughput of extraction and of sums on 1, 2 and 4 worker processes, against this process alone.

python -m benchmarks.cluster [--items 4096] [--rows 131072] [--rounds 3] [--json results.json]

Extraction: MiniLM-L6 (ONNX Runtime) over short texts. Sums: two stored spaces of 384 float32 dimensions in five folds.
Workers have one thread each, and are timed after a warm-up in which each has loaded its encoder; what starting a
cluster costs is a row of its own. This process uses all cores as it does in a run without a cluster, and one core for
the sums of blocks, whose bits must be those of the workers. More workers than cores can show that nothing is lost, not
that anything is gained.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

WORKERS = (1, 2, 4)
FOLDS = 5
WIDTH = 384


def table(path: Path, items: int, rng: np.random.Generator, most: int = 14) -> Path:
    """Texts of 6 to 14 common words, or of one."""
    words = [
        "the",
        "house",
        "of",
        "blue",
        "river",
        "a",
        "quick",
        "dog",
        "under",
        "heavy",
        "rain",
        "with",
        "seven",
        "stars",
    ]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "text"])
        for item in range(items):
            rows.writerow([f"t{item}", " ".join(rng.choice(words, rng.integers(min(6, most), most + 1))) + f" {item}"])
    return path


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=4096, help="texts to embed")
    parser.add_argument("--rows", type=int, default=131_072, help="rows to sum")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is printed")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SUTURE_HOME"] = folder
        from flows import environment

        environment.prepare()
        found = measure(Path(folder), options.items, options.rows, options.rounds)
    found["cores"] = os.cpu_count()
    print(f"{os.cpu_count()} cores; {options.items:,} texts, {options.rows:,} rows of 2 x {WIDTH} in {FOLDS} folds")
    print(f"{'':24}{'items/s':>12}{'rows/s of sums':>18}{'start, s':>12}")
    for name, row in found["rows"].items():
        cells = [f"{row[what]:,.0f}" if what in row else "-" for what in ("items", "sums")]
        print(f"{name:24}{cells[0]:>12}{cells[1]:>18}{row.get('start', 0.0):>12.1f}")
    print("the sums' bits are the same" if found["same bits"] else "THE SUMS' BITS DIFFER")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def measure(folder: Path, items: int, n: int, rounds: int) -> dict[str, Any]:
    from align.evaluation import Anchors
    from align.moments import Moments, Points
    from flows import cluster
    from flows.config import ComputeConfig, DatasetConfig, SpaceConfig
    from registry import datasets, encoders
    from registry.extract import extract
    from registry.store import EmbeddingStore, Identity

    rng = np.random.default_rng(0)
    encoder, space = encoders.create("minilm-l6"), SpaceConfig(encoder="minilm-l6", column="text")

    def embed(compute: ComputeConfig | None, path: Path) -> None:
        of = DatasetConfig(name="table", options={"path": str(path), "text": "text", "key": "key"})
        data, store = datasets.create("table", **of.options), EmbeddingStore(tempfile.mkdtemp(dir=folder))
        if compute is None:
            extract(store, encoder, data, "text")  # type: ignore[arg-type]
        else:
            cluster.embed(compute, store, space, of, encoder, data, "stop", lambda done: None)  # type: ignore[arg-type]

    texts, warm = table(folder / "texts.csv", items, rng), table(folder / "warm.csv", 8 * 512, rng, 1)
    store, keys = EmbeddingStore(folder / "sums"), [f"r{row}" for row in range(n)]
    stored = []
    for name in ("x", "y"):

        def draw(rows: range) -> tuple[np.ndarray, list[int], list[tuple[str, str]]]:
            return rng.standard_normal((len(rows), WIDTH), np.float32), list(rows), []

        stored.append(store.write(Identity(name, "", "", "", "", ""), keys, draw))
    rows, folds = np.arange(n), rng.integers(0, FOLDS, n)
    vectors = [store.take(key, rows) for key in stored]

    def sums(compute: ComputeConfig | None) -> Moments:
        sides = [
            cluster.Side(key, rows, Anchors(of_space, folds)) for key, of_space in zip(stored, vectors, strict=True)
        ]
        # A place of its own each time: what is kept would be found again.
        items = {"time": time.perf_counter_ns()}
        return cluster.pair_moments(compute, store, (sides[0], sides[1]), folds, items, True)

    def in_memory() -> Moments:
        return Points.of(vectors[0], folds).with_target(Points.of(vectors[1], folds))

    def rate(count: int, work: Callable[[], Any]) -> float:
        return count / median(timed(work) for _ in range(rounds))

    embed(None, warm)
    found: dict[str, dict[str, float]] = {
        "this process": {"items": rate(items, lambda: embed(None, texts)), "sums": rate(n, in_memory)},
        "this process, blocks": {"sums": rate(n, lambda: sums(None))},
    }
    bits = {sums(None).cross.tobytes()}
    for workers in WORKERS:
        compute = ComputeConfig(dask="local", workers=workers)
        with cluster.closing():
            start = timed(lambda: cluster.client(compute))  # noqa: B023
            embed(compute, warm)
            bits.add(sums(compute).cross.tobytes())
            found[f"{workers} worker{'s' if workers > 1 else ''}"] = {
                "items": rate(items, lambda: embed(compute, texts)),  # noqa: B023
                "sums": rate(n, lambda: sums(compute)),  # noqa: B023
                "start": start,
            }
    return {"rows": found, "same bits": len(bits) == 1}


if __name__ == "__main__":
    main()
