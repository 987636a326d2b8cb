"""Scheduled runs on the real services: two workers beside each other on one home, and a run that is cancelled and goes on."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from benchmarks.soak.home import IMPATIENT, SUTURE, Home
from tests.flows.conftest import hub, small, write_config, write_pictures
from tests.services.conftest import suture
from tests.services.topology import Topology


@dataclass
class Place:
    """A home with a store of its own, its workers, and the processes of their runs."""

    services: Topology
    home: Home
    workers: list[str] = field(default_factory=list)

    def add_worker(self) -> int:
        """Start ``suture worker --limit 1``; gives its process's id."""
        self.workers.append(f"worker-{uuid4().hex[:6]}")
        words = [*SUTURE, "worker", "--limit", "1"]
        started = self.services.add(self.workers[-1], words, environment=self.home.environment).process
        assert started
        return started.pid

    def suture(self, *words: object) -> str:
        """Run ``suture`` to its good end; gives what it printed."""
        done = suture(self.services, self.home.path, *words, SUTURE_STORE=self.home.environment["SUTURE_STORE"])
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def flow_runs(self, name: str) -> list[dict[str, Any]]:
        """The flow runs of a schedule, the oldest first."""
        rows = self.services.query(
            "prefect",
            "select r.state_type::text, r.labels, r.start_time, r.end_time from flow_run r "
            f"join deployment d on d.id = r.deployment_id where d.name = '{name}' order by r.created",
        )
        return [dict(zip(("state", "labels", "start", "end"), row, strict=True)) for row in rows]

    def recorded(self, experiment: str) -> list[str]:
        """The states of the runs of an MLflow experiment, children left out."""
        rows = self.services.query(
            "mlflow",
            f"select r.status from runs r join experiments e using (experiment_id) where e.name = '{experiment}' and "
            "not exists (select 1 from tags t where t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId')",
        )
        return [str(status) for (status,) in rows]

    def processes(self) -> list[psutil.Process]:
        """All that works in this home but for its workers: the processes of runs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get("SUTURE_HOME") == str(self.home.path)
                if mine and process.cmdline()[1:4] != [*SUTURE[1:], "worker"]:
                    found.append(process)
        return found

    def wait(self, what: str, true: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for what a worker does; AssertionError with the workers' logs where it takes too long."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                logs = [(self.services.logs / f"{name}.log").read_text()[-2000:] for name in self.workers]
                raise AssertionError(f"{seconds} s passed before {what}:\n" + "\n".join(logs))
            time.sleep(0.05)


@pytest.fixture
def place(services: Topology, tmp_path: Path, session_home: Path) -> Iterator[Place]:
    environment = {**os.environ, **services.environment(), **IMPATIENT, "OMP_NUM_THREADS": "1"}
    home = Home(tmp_path / "home", session_home / "cache", environment, store=f"s3://suture/{uuid4().hex}")
    place = Place(services, home)
    try:
        yield place
    finally:
        for name in place.workers:
            services.kill(name)
        for process in place.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def test_two_workers_on_one_home_share_the_work(
    place: Place, pictures: Path, services: Topology, tmp_path: Path
) -> None:
    names = [f"{name}-{uuid4().hex[:6]}" for name in ("one", "two")]
    configs = [
        # The same spaces: what one embeds the other finds, or waits for.
        write_config(tmp_path / f"{name}.yaml", small(pictures, name=name, maps=maps, mlflow={
            "tracking_uri": services.mlflow_url, "experiment": name}))
        for name, maps in zip(names, (["ridge"], ["procrustes"]), strict=True)
    ]  # fmt: skip
    pids = f"{place.add_worker()}|{place.add_worker()}"
    # Names begin with host and process. One that starts late would leave both runs to the other.
    sql = f"select 1 from worker where name ~ '-({pids})(-|$)' and last_heartbeat_time > now() - interval '30 seconds'"
    place.wait("both workers were there", lambda: len(services.query("prefect", sql)) == 2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda config: place.suture("schedule", config, "--once"), configs))
    written: set[tuple[str, tuple[int, int]]] = set()

    def both_completed() -> bool:
        written.update(place.home.shards().items())
        states = [run["state"] for name in names for run in place.flow_runs(name)]
        assert not {"FAILED", "CRASHED", "CANCELLED"} & set(states)
        return states == ["COMPLETED"] * 2

    place.wait("both were completed", both_completed)
    runs = [run for name in names for run in place.flow_runs(name)]
    assert len({run["labels"]["prefect.worker.name"] for run in runs}) == 2
    assert max(run["start"] for run in runs) < min(run["end"] for run in runs), "one after the other"
    assert [place.recorded(name) for name in names] == [["FINISHED"]] * 2
    shards = [name for name, _ in written]
    assert len(shards) == len(set(shards)) == 2, "a space was embedded twice"
    assert place.home.leases() == 0


def test_a_cancelled_run_stops_and_the_next_goes_on(place: Place, services: Topology, tmp_path: Path) -> None:
    pictures, name = write_pictures(tmp_path / "emoji.parquet", 1100), f"cancelled-{uuid4().hex[:6]}"
    content = small(
        pictures,
        name=name,
        dataset=hub(pictures),
        spaces={
            "lite0": {"encoder": "efficientnet-lite0", "column": "image"},
            "glove": {"encoder": "glove-6b-50d", "column": "en"},
        },
        pairs=[["lite0", "glove"]],
        mlflow={"tracking_uri": services.mlflow_url, "experiment": name},
    )
    config = write_config(tmp_path / "cancelled.yaml", content)

    def states() -> list[str]:
        return [run["state"] for run in place.flow_runs(name)]

    place.add_worker()
    place.suture("schedule", config, "--once")
    place.wait("the first shard was stored", lambda: bool(place.home.shards()))
    assert place.processes()
    assert "cancelling 1 of" in place.suture("schedule", "cancel", name)
    before = place.home.shards()
    place.wait("the run was cancelled", lambda: states() == ["CANCELLED"], 45)
    place.wait("its process was gone", lambda: not place.processes(), 30)
    assert place.home.leases() == 0
    assert before.items() <= place.home.shards().items()
    assert len(place.home.shards()) < 3, "it was done before it was cancelled"
    assert "RUNNING" not in place.recorded(name)

    place.suture("schedule", config, "--once")
    place.wait("the next one was completed", lambda: states() == ["CANCELLED", "COMPLETED"])
    assert before.items() <= place.home.shards().items(), "a finished shard was written again"
    assert place.recorded(name) == ["FINISHED"]
    assert [json.loads(path.read_text())["name"] for path in place.home.path.glob("runs/*/run.json")] == [name]
