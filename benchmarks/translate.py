"""Translating stored vectors against what cannot be avoided: copying the file, and the product.

python -m benchmarks.translate [--json results.json]

1,000,000 x 384 float32 by a map into 384 dimensions; the copy and the translated file are synced to disk. The ratio is
of the medians of five rounds, in each of which everything is timed once, in turn. SUTURE_BENCH_SCALE below one makes it
smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.maps import Watch, embeddings, result, rows, seconds

ROUNDS = 5
MEMORY = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()

    from align.maps.linear import Ridge
    from registry.vectors import translate_file

    n, d, step = rows(1_000_000), 384, 20_000
    rng = np.random.default_rng(0)
    anchors = embeddings(5000, d, rng)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    watch = Watch()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fitted = Ridge().fit(anchors, anchors @ turn)
        fitted.save(folder / "map")
        made = np.lib.format.open_memmap(folder / "X.npy", mode="w+", dtype=np.float32, shape=(n, d))
        for start in range(0, n, step):
            made[start : start + step] = embeddings(min(step, n - start), d, rng)
        made.flush()
        del made
        X = np.load(folder / "X.npy", mmap_mode="r")
        W = fitted.matrix_.astype(np.float32)
        out = np.empty((step, W.shape[1]), np.float32)

        def copy() -> None:
            shutil.copyfile(folder / "X.npy", folder / "copy.npy")
            with (folder / "copy.npy").open("rb") as file:
                os.fsync(file.fileno())

        def product() -> None:
            for start in range(0, n, step):
                block = X[start : start + step]
                np.matmul(block, W, out=out[: len(block)])

        def ours() -> None:
            translate_file(folder / "map", folder / "X.npy", folder / "out.npy")

        taken: dict[str, list[float]] = {"copy": [], "product": [], "translate": []}
        peaks = []
        for one in (copy, product, ours):  # warm
            one()
        for _ in range(ROUNDS):
            for what, one in (("copy", copy), ("product", product), ("translate", ours)):
                for file in (folder / "copy.npy", folder / "out.npy"):
                    file.unlink(missing_ok=True)
                watch.reset()
                taken[what].append(seconds(one, 1))
                if what == "translate":
                    peaks.append(watch.peak() / 1e9)
    floors = [sum(both) for both in zip(taken["copy"], taken["product"], strict=True)]
    name = f"translating {n:,} x {d} to disk / copying the file and the product"
    scored = result(name, median(taken["translate"]), median(floors), at_most=1.3)
    scored |= {"RssAnon GB": round(max(peaks), 2), "at most GB": MEMORY, "rounds": taken}
    scored["held"] = scored["held"] and max(peaks) < MEMORY
    print(json.dumps(scored, indent=1))
    if options.json:
        options.json.write_text(json.dumps([scored], indent=1))


if __name__ == "__main__":
    main()
