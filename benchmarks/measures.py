"""The measures of similarity against the forms that they replace: ratios in one run.

python -m benchmarks.measures [CASE ...] [--json results.json]

As in `benchmarks.maps`, whose data and watch on memory these are: every case in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.maps import Result, Watch, embeddings, pair, result, rows, seconds

QUICKSTART = ("cka", "cka_debiased", "mutual_knn")
"""What the quickstart compares its spaces by."""


def cka(options: argparse.Namespace) -> list[Result]:
    from align.measures.similarity import linear_cka

    X, Y = pair(rows(20_000), 768, 768)
    Y += 5 * np.random.default_rng(1).standard_normal(Y.shape, dtype=np.float32)
    found: dict[str, float] = {}

    def kernels() -> None:
        """Centred n x n kernels in single precision, and their inner products, as the definition has it."""

        def centred(Z: np.ndarray) -> np.ndarray:
            K = Z @ Z.T
            K -= K.mean(0, keepdims=True)
            K -= K.mean(1, keepdims=True)
            return K

        K, L = centred(X), centred(Y)
        # Row by row, so that nothing is lost in long sums of single precision.
        inner = [sum(float(np.vdot(a, b)) for a, b in zip(*sides, strict=True)) for sides in ((K, L), (K, K), (L, L))]
        found["theirs"] = inner[0] / np.sqrt(inner[1] * inner[2])

    def ours() -> None:
        found["ours"] = linear_cka(X, Y)

    taken = seconds(ours)
    return [
        result("linear CKA of 20,000 x 768: n x n form / d x d sums", seconds(kernels, 1), taken, at_least=15.0)
        | {"values": [found["ours"], found["theirs"]], "gap": abs(found["ours"] - found["theirs"]), "at most gap": 1e-6}
    ]


def mutual_knn(options: argparse.Namespace) -> list[Result]:
    import faiss

    from align.measures.similarity import centred_units
    from align.measures.similarity import mutual_knn as measure

    n, d = rows(50_000), 768
    X, Y = pair(n, d, d)
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = measure(X, Y)

    options.watch.reset()
    taken = seconds(ours, 1)
    peak = options.watch.peak() / 1e9
    units = centred_units(X), centred_units(Y)

    def peer() -> None:
        lists = []
        for Z in units:
            index = faiss.IndexFlatIP(d)
            index.add(Z)
            lists.append(index.search(Z, 11)[1])
        shared = 0
        for i, (a, b) in enumerate(zip(*lists, strict=True)):
            shared += len((set(a.tolist()) & set(b.tolist())) - {i})
        found["theirs"] = shared / (10 * n)

    return [
        result("mutual kNN of 50,000 x 768, both searches / faiss IndexFlatIP", taken, seconds(peer, 1), at_most=0.8)
        | {
            "values": [found["ours"], found["theirs"]],
            "RssAnon GB": round(peak, 2),
            "of which the two spaces": round(2 * X.nbytes / 1e9, 2),
            "at most GB": 1.0,
        }
    ]


def bootstrap(options: argparse.Namespace) -> list[Result]:
    from align.score import bootstrap as replicates

    n = rows(10_000)
    hits = (np.random.default_rng(0).random(n) < 0.4).astype(float)
    codes = np.arange(n)
    taken = seconds(lambda: replicates(hits, codes, replicates=1000), 5)
    return [result("1,000 bootstrap replicates of recall over 10,000 items: seconds / .2", taken, 0.2, at_most=1.0)]


def quickstart(options: argparse.Namespace) -> list[Result]:
    from align.measures import MEASURES
    from align.measures.matrix import similarity_matrices

    rng = np.random.default_rng(0)
    dimensions = {"lite0": 1280, "lite1": 1280, "lite2": 1280, "resnet50-thin": 1024, "minilm-l6": 384, "e5-small": 384,
                  "e5-small-de": 384, "e5-small-fr": 384, "glove": 50, "pixels": 192, "untrained": 1280}  # fmt: skip
    spaces = {name: embeddings(rows(1390), d, rng) for name, d in dimensions.items()}
    taken = seconds(lambda: similarity_matrices(spaces, QUICKSTART), 1)
    out = [result("the quickstart's measures of its 11 spaces: seconds / 10", taken, 10.0, at_most=1.0)]
    # The others are of no bound: what each would add.
    for name in set(MEASURES) - set(QUICKSTART) if options.all else ():
        taken = seconds(partial(similarity_matrices, spaces, [name]), 1)
        out.append(result(f"{name} alone: seconds / 10", taken, 10.0))
    return out


CASES = {case.__name__: case for case in (cka, mutual_knn, bootstrap, quickstart)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--json", type=Path, help="write all results there")
    parser.add_argument("--all", action="store_true", help="time every measure on the quickstart's spaces")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        options.watch = Watch()
        print(json.dumps(CASES[options.cases[0]](options)))
        return
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    made: list[Result] = []
    for case in options.cases or CASES:
        command = [sys.executable, "-m", "benchmarks.measures", case, "--inside", *["--all"] * options.all]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{case} failed", flush=True)
            continue
        for one in json.loads(done.stdout.splitlines()[-1]):
            made.append({"case": case, **one})
            mark = "ok  " if one["held"] else "MISS"
            print(f"{mark} {one.pop('ratio'):7.2f} {one.pop('name')}  {one}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
