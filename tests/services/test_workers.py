"""Scheduled runs on the real services: two workers beside each other on one home, and a run that is cancelled and goes on."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psutil
import requests

from tests.flows.conftest import hub, small, write_config, write_pictures
from tests.services.conftest import Place, suture
from tests.services.topology import Topology


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    watched = place.add_worker("--health", port)
    pids = f"{watched}|{place.add_worker()}"
    # Names begin with host and process. One that starts late would leave both runs to the other.
    sql = f"select 1 from worker where name ~ '-({pids})(-|$)' and last_heartbeat_time > now() - interval '30 seconds'"
    place.wait("both workers were there", lambda: len(services.query("prefect", sql)) == 2)
    assert requests.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200
    listening = {one.laddr.ip for one in psutil.Process(watched).net_connections("tcp") if one.status == "LISTEN"}
    assert listening == {"127.0.0.1"}
    refused = suture(services, place.home.path, "worker", "--health", port)
    assert (refused.returncode, refused.stderr.count("error:")) == (2, 1)
    assert f"--health {port}" in refused.stderr
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
