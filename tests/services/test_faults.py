"""The topology itself: services come back after being killed or stalled, and nothing is left of a killed test."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from tests.services.topology import ROOT, Topology


def experiments(services: Topology, timeout: float = 20) -> int:
    login = ("admin", services.secrets["mlflow_admin"])
    url = f"{services.mlflow_url}/api/2.0/mlflow/experiments/search"
    return requests.post(url, json={"max_results": 10}, auth=login, timeout=timeout).status_code


def flows(services: Topology, timeout: float = 20) -> int:
    user, password = services.secrets["prefect_auth"].split(":")
    url = f"{services.prefect_url}/flows/count"
    return requests.post(url, json={}, auth=(user, password), timeout=timeout).status_code


def test_both_servers_go_on_after_postgres_was_killed(services: Topology) -> None:
    assert (experiments(services), flows(services)) == (200, 200)
    services.kill("postgres")
    assert services.services["postgres"].process is None
    services.start("postgres")
    # A pool may hand out connections that died, once each.
    for ask in (experiments, flows):
        end = time.monotonic() + 20
        while ask(services) != 200:
            assert time.monotonic() < end, f"{ask.__name__} did not come back"


def test_a_stalled_server_does_not_answer_until_it_is_resumed(services: Topology) -> None:
    services.stall("mlflow")
    try:
        with pytest.raises(requests.Timeout):
            experiments(services, timeout=1)
    finally:
        services.resume("mlflow")
    assert experiments(services) == 200


def test_nothing_is_left_of_a_killed_test() -> None:
    script = """
import os, signal
from tests.services.topology import Topology
services = Topology()
services._begin()
for name in ("one", "two"):
    services.add(name, ["sleep", "1000"])
print(services.folder, *(services.services[name].process.pid for name in ("one", "two")), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    folder, *left = done.stdout.split()
    assert len(left) == 2, done.stderr
    end = time.monotonic() + 20
    while Path(folder).exists() or any(psutil.pid_exists(int(pid)) for pid in left):
        assert time.monotonic() < end, "the watchdog did not end what was left"
        time.sleep(0.1)
