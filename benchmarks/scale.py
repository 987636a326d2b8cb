"""What the pipeline costs around the mathematics: many pairs, recorded as many child runs.

python -m benchmarks.scale [--spaces 15] [--tracking-uri http://...] [--json results.json]

Spaces are rotations of one random space with noise, as files, so that nothing is embedded and all that is left is
Prefect, MLflow and the maps. The run is made twice: fresh, and with everything kept. Set
MLFLOW_TRACKING_URI, PREFECT_API_URL and their passwords to measure real services.
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

import numpy as np
import yaml

ITEMS, WIDTH = 1000, 64


def spaces(folder: Path, number: int) -> dict[str, Any]:
    """Files of vectors with keys, as spaces of a configuration."""
    from registry import datasets

    keys = datasets.create("emoji").keys[:ITEMS]
    rng = np.random.default_rng(0)
    base = rng.standard_normal((len(keys), WIDTH)).astype(np.float32)
    found = {}
    for space in range(number):
        turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)
        noise = rng.standard_normal(base.shape).astype(np.float32)
        np.save(folder / f"s{space}.npy", base @ turn + (0.2 + 0.1 * space) * noise)
        (folder / f"s{space}.keys.json").write_text(json.dumps(list(keys)))
        found[f"s{space}"] = {
            "encoder": "precomputed",
            "options": {"path": str(folder / f"s{space}.npy"), "modality": "text"},
        }
    return found


def run(config: Path, home: Path) -> dict[str, Any]:
    """One `suture run` in a process of its own, with its wall time."""
    begun = time.perf_counter()
    made = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", str(config), "--json"],
        env={**os.environ, "SUTURE_HOME": str(home)}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return {**json.loads(made.stdout)["timings"], "wall": time.perf_counter() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", type=int, default=15)
    parser.add_argument("--tracking-uri", help="an MLflow server; a SQLite database where none is given")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="suture-scale-") as name:
        folder = Path(name)
        given = spaces(folder, options.spaces)
        pairs = [[a, b] for a in given for b in given if a != b]
        content: dict[str, Any] = {
            "name": f"scale-{os.getpid()}", "dataset": {"name": "emoji"}, "spaces": given, "pairs": pairs,
            "maps": ["ridge", "procrustes"], "measures": ["cka_debiased"],
        }  # fmt: skip
        if options.tracking_uri:
            content["mlflow"] = {"tracking_uri": options.tracking_uri}
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(content))
        first, second = run(config, folder / "home"), run(config, folder / "home")
        kept = sum(file.stat().st_size for file in (folder / "home" / "mlflow").rglob("*") if file.is_file())
    result = {
        "pairs": len(pairs),
        "first run": first,
        "all kept": second,
        "record s": max(first["record"], second["record"]),
        "record ms a child": 1000 * second["record"] / len(pairs),
        "record bytes a child": kept / 2 / len(pairs),
        "all kept ms a pair": 1000 * second["wall"] / len(pairs),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
