"""What the pipeline costs around the mathematics: many pairs, recorded as many child runs.

python -m benchmarks.scale [--spaces 15] [--services] [--json results.json]

Spaces are rotations of one random space with noise, as files, so that nothing is embedded and all that is left is
Prefect, MLflow and the maps. The run is made twice: fresh, and with everything kept. MLflow is a SQLite database and
Prefect a server that the run starts; with --services both are servers with passwords on PostgreSQL, started here, and
artifacts and embeddings go to an S3 endpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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


@contextmanager
def services() -> Iterator[None]:
    """Real services, which the environment names as clients know them: as MLflow's user who is no administrator."""
    from tests.services.topology import Topology

    with Topology() as topology:
        os.environ.update(topology.environment())
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", type=int, default=15)
    parser.add_argument("--services", action="store_true", help="on PostgreSQL, S3, MLflow and Prefect, with passwords")
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
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(content))
        with services() if options.services else nullcontext():
            first, second = run(config, folder / "home"), run(config, folder / "home")
        kept = sum(file.stat().st_size for file in (folder / "home" / "mlflow").rglob("*") if file.is_file())
    result = {
        "spaces": options.spaces,
        "pairs": len(pairs),
        "first run": first,
        "all kept": second,
        "record s": max(first["record"], second["record"]),
        "record ms a child": 1000 * second["record"] / len(pairs),
        "record bytes a child": kept / 2 / len(pairs) if kept else None,
        "all kept ms a pair": 1000 * second["wall"] / len(pairs),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
