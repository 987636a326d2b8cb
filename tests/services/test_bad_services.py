"""Databases of another version, servers that are away, stores that cannot be written: one clear line, nothing lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.services.conftest import Recorded, suture
from tests.services.topology import Topology

UNKNOWN = "0123456789ab"


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("error")]
    assert len(lines) == 1, text[-3000:]
    assert "Traceback" not in text
    return lines[0]


def test_a_database_of_another_schema_version(
    services: Topology, recorded: Recorded, config: Path, tmp_path: Path
) -> None:
    """Changed by hand as a newer MLflow would: neither the server nor suture touches it, and it works again after."""
    (version,) = services.query("mlflow", "select version_num from alembic_version")[0]
    runs = services.query("mlflow", "select count(*) from runs")
    services.stop("mlflow")
    services.query("mlflow", f"update alembic_version set version_num = '{UNKNOWN}'")
    try:
        # Without a server in between, with the password in libpq's variable.
        direct = {**services.database("mlflow"), "MLFLOW_TRACKING_URI": "postgresql+psycopg2:///mlflow"}
        text = config.read_text().replace(services.mlflow_url, direct["MLFLOW_TRACKING_URI"])
        own = tmp_path / "direct.yaml"
        own.write_text(text)
        done = suture(services, recorded.home, "run", own, **direct)
        said = one_line(done.stderr)
        assert done.returncode == 3, "results are kept"
        assert UNKNOWN in said
        assert version in said
        assert "suture record" in said
        assert services.secrets["mlflow_database"] not in done.stdout + done.stderr
        # MLflow's own server does not start on it either.
        with pytest.raises(AssertionError, match=f"mlflow ended:[^$]*{UNKNOWN}"):
            services.start("mlflow")
        services.kill("mlflow")
    finally:
        services.query("mlflow", f"update alembic_version set version_num = '{version}'")
        services.start("mlflow")
    assert services.query("mlflow", "select count(*) from runs") == runs
    kept = max((recorded.home / "runs").iterdir(), key=lambda path: path.stat().st_mtime).name
    assert kept != recorded.run_id
    sent = suture(services, recorded.home, "record", kept, "--tracking-uri", services.mlflow_url)
    assert sent.returncode == 0, sent.stderr
    assert services.query("mlflow", "select count(*) from runs")[0][0] > runs[0][0]


def test_a_database_of_another_version_of_prefect(services: Topology, config: Path, tmp_path: Path) -> None:
    """The server does not start on it, says which schema it found, and changes nothing; clients say that it is not there."""
    (version,) = services.query("prefect", "select version_num from alembic_version")[0]
    flow_runs = services.query("prefect", "select count(*) from flow_run")
    services.stop("prefect")
    services.query("prefect", f"update alembic_version set version_num = '{UNKNOWN}'")
    try:
        with pytest.raises(AssertionError, match=f"prefect ended:[^$]*{UNKNOWN}"):
            services.start("prefect")
        services.kill("prefect")
        done = suture(services, tmp_path, "run", config)
        assert done.returncode == 2
        assert services.prefect_url in one_line(done.stderr)
        assert services.query("prefect", "select version_num from alembic_version") == [(UNKNOWN,)]
    finally:
        services.query("prefect", f"update alembic_version set version_num = '{version}'")
        services.start("prefect")
    assert services.query("prefect", "select count(*) from flow_run") == flow_runs


def test_the_environment_says_where_runs_are_recorded(
    services: Topology, recorded: Recorded, config: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(config.read_text())
    own = tmp_path / "unsaid.yaml"
    own.write_text(yaml.safe_dump({**content, "name": "unsaid", "mlflow": {}}))
    done = suture(services, recorded.home, "run", own)
    assert done.returncode == 0, done.stderr
    assert services.query("mlflow", "select status from runs where name like '%-unsaid-%'") == [("FINISHED",)]


def test_an_experiment_of_somebody_else(services: Topology, recorded: Recorded, config: Path, tmp_path: Path) -> None:
    theirs = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": services.secrets["mlflow_admin"]}
    content = yaml.safe_load(config.read_text())
    own = tmp_path / "theirs.yaml"
    own.write_text(
        yaml.safe_dump({**content, "name": "theirs", "mlflow": {**content["mlflow"], "experiment": "theirs"}})
    )
    made = suture(services, recorded.home, "run", own, **theirs)
    assert made.returncode == 0, made.stderr
    done = suture(services, recorded.home, "run", own)
    said = one_line(done.stderr)
    assert done.returncode == 3, "results are kept"
    assert "403" in said
    assert "Permission denied" in said
    assert "MLFLOW_TRACKING_USERNAME" in said
    assert "suture record" in said


@pytest.mark.parametrize("where", ["configuration", "environment"])
def test_an_address_with_a_password_is_refused(
    services: Topology, recorded: Recorded, config: Path, tmp_path: Path, where: str
) -> None:
    secret = services.secrets["mlflow_admin"]
    address = services.mlflow_url.replace("//", f"//admin:{secret}@")
    content = yaml.safe_load(config.read_text())
    content["mlflow"] = {"tracking_uri": address} if where == "configuration" else {}
    own = tmp_path / "password.yaml"
    own.write_text(yaml.safe_dump(content))
    done = suture(services, recorded.home, "run", own, MLFLOW_TRACKING_URI=address)
    assert done.returncode == 2
    assert "MLFLOW_TRACKING_PASSWORD" in one_line(done.stderr)
    assert secret not in done.stdout + done.stderr
    left = [path for path in recorded.home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert left == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB that can be made read-only; writing to it asks nobody's permission."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_stores_that_cannot_be_written(
    services: Topology, recorded: Recorded, config: Path, disk: Path, tmp_path: Path
) -> None:
    def said(name: str, **changes: str) -> str:
        home = tmp_path / name
        home.mkdir()
        done = suture(services, home, "run", config, **changes)
        assert done.returncode == 2, done.stderr
        return one_line(done.stderr)

    assert "No space left on device" in said("full", SUTURE_STORE=str(disk))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert "Read-only file system" in said("read-only", SUTURE_STORE=str(disk))
    # What was finished on the full disk is whole: with room for the rest, the run ends as everywhere else.
    subprocess.run(["mount", "-o", "remount,rw,size=50m", disk], check=True)
    done = suture(services, tmp_path / "full", "run", config, SUTURE_STORE=str(disk))
    assert done.returncode == 0, done.stderr
    whole = {path.name: path.read_bytes() for path in disk.rglob("*.npy")}
    assert whole
    assert whole.items() <= {path.name: path.read_bytes() for path in recorded.home.rglob("*.npy")}.items()


def test_a_wrong_password_of_prefect(services: Topology, config: Path, tmp_path: Path) -> None:
    done = suture(services, tmp_path, "run", config, PREFECT_API_AUTH_STRING="suture:wrong")
    assert done.returncode == 2
    assert "PREFECT_API_AUTH_STRING" in one_line(done.stderr)
    assert not (tmp_path / "runs").exists()
