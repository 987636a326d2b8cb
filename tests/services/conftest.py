"""One topology of real services for the session, and one real run through it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flows.conftest import pictures, small, write_config  # noqa: F401
from tests.services.topology import ROOT, Topology, postgres_binaries


@pytest.fixture(scope="session")
def services() -> Iterator[Topology]:
    """PostgreSQL, an S3 endpoint, MLflow and Prefect, with passwords."""
    if postgres_binaries() is None:
        reason = "PostgreSQL is not installed: apt-get install postgresql"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with Topology() as topology:
        yield topology


@dataclass(frozen=True)
class Recorded:
    """A finished run: its id here and in MLflow, its home, and all that it printed."""

    run_id: str
    mlflow_run: str
    home: Path
    printed: str


def suture(services: Topology, home: Path, *words: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run ``suture`` as a client of the services."""
    environment = {**os.environ, **services.environment(), "SUTURE_HOME": str(home), "PREFECT_HOME": f"{home}/prefect"}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *map(str, words)],
        cwd=ROOT, env={**environment, **changes}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="session")
def config(services: Topology, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The smallest real configuration."""
    content = small(pictures, mlflow={"tracking_uri": services.mlflow_url})
    return write_config(tmp_path_factory.mktemp("config") / "small.yaml", content)


@pytest.fixture(scope="session")
def recorded(services: Topology, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The flow, run through the services, with all that Prefect would log."""
    home = tmp_path_factory.mktemp("home")
    done = suture(services, home, "run", config, "--json", PREFECT_LOGGING_LEVEL="DEBUG", MLFLOW_LOGGING_LEVEL="DEBUG")
    assert done.returncode == 0, done.stderr[-3000:]
    run_id = json.loads(done.stdout)["run"]
    run = json.loads((home / "runs" / run_id / "run.json").read_text())
    return Recorded(run_id, run["mlflow_run"], home, done.stdout + done.stderr)
