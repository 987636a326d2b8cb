"""The faults of the soak, and what must hold after each: see `benchmarks.soak`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil
import requests

from tests.flows.conftest import ROOT, small, write_config, write_pictures
from tests.services.topology import Topology

BUCKET = "soak"
SUTURE = [sys.executable, "-m", "flows.cli"]
# `suture worker`, with less patience: what it would find after a minute it finds after seconds.
WORKER = """
import sys
from datetime import timedelta
from flows import environment
environment.prepare()
environment.make_home()
from flows import recovery
recovery.INTERVAL, recovery.GRACE = 3.0, timedelta(seconds=12)
sys.argv = ["suture", "worker"]
from flows.cli import main
main()
"""
IMPATIENT = {"PREFECT_WORKER_HEARTBEAT_SECONDS": "2", "PREFECT_WORKER_QUERY_SECONDS": "1"}
FILLER = "filler"
STALL = 8.0
DOWN = 2.0
LIMIT = 240.0
"""Seconds that a run may take with its fault."""


@dataclass
class Row:
    """One fault: what was done when, and what came of it."""

    fault: str
    moment: float
    seconds: float = 0.0
    restarts: int = 0
    """How often the flow was started again by hand; 0 for scheduled runs that the worker took up."""
    finished: bool = False
    clear: bool = True
    """What failed said so in one line, with an exit code that means it."""
    said: str = ""
    identical: bool = False
    running: int = 0
    """MLflow runs left RUNNING."""
    flow_runs: int = 0
    """Prefect flow runs left in a state that is not final."""
    leases: int = 0
    kept: int = 0
    """Shards that were finished when the fault came."""
    redone: int = 0
    """Of these, how many were written again."""


def checks(rows: Sequence[Row], seen: dict[str, Any]) -> list[str]:
    """What does not hold, a line each."""
    failed = [f"not whole when read: {line}" for line in seen["broken"]]
    if rows and not seen["verified"]:
        failed.append("the reader saw nothing")
    for row in rows:
        problems = {
            "did not finish": not row.finished, "did not fail clearly": not row.clear,
            "gave other results": not row.identical, f"left {row.running} MLflow runs RUNNING": row.running,
            f"left {row.flow_runs} flow runs unfinished": row.flow_runs, f"left {row.leases} leases": row.leases,
            f"did {row.redone} finished shards again": row.redone,
        }  # fmt: skip
        failed += [f"{row.fault} at {row.moment:.1f} s {text} ({row.said})" for text, bad in problems.items() if bad]
    return failed


class Home:
    """A fresh SUTURE_HOME with a store of its own, and the processes that work in it."""

    def __init__(self, soak: Soak, name: str, *, store: str | None = None, disk: bool = False) -> None:
        self.soak, self.name = soak, name
        self.path = soak.folder / "homes" / name
        self.path.mkdir(parents=True)
        if disk:
            # Where mounting is not allowed, `_fill` finds another way.
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", self.path], capture_output=True)
        (soak.folder / "cache").mkdir(exist_ok=True)
        (self.path / "cache").symlink_to(soak.folder / "cache")
        self.environment = {
            **soak.environment, "SUTURE_HOME": str(self.path), "PREFECT_HOME": f"{self.path}/prefect",
            "SUTURE_STORE": store or f"s3://{BUCKET}/{name}",
        }  # fmt: skip

    def start(self, *words: object) -> subprocess.Popen[str]:
        """`suture` in a process of its own."""
        return subprocess.Popen(
            [*SUTURE, *map(str, words)], cwd=ROOT, env=self.environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def shards(self) -> dict[str, tuple[int, int]]:
        """The side files of finished shards, with what changes when one is written again."""
        found = {}
        for path in self.path.glob("store/v2/??/*/[0-9]*.json"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                stat, sha256 = path.stat(), json.loads(path.read_text())["sha256"]
                if path.with_name(f"{path.stem}-{sha256[:16]}.npy").exists():
                    found[str(path.relative_to(self.path))] = (stat.st_ino, stat.st_mtime_ns)
        return found

    def leases(self) -> int:
        return len(list(self.path.glob("running/*.json")))

    def results(self) -> dict[str, Any]:
        """Digests of all that a run is for: embeddings as they lie in the store, maps, scores and rankings."""
        digests: dict[str, str] = {}
        for path in sorted(self.path.glob("store/v2/??/*/*.npy")) + sorted(self.path.glob("results/v*/??/*/*/*")):
            digests[str(path.relative_to(self.path))] = hashlib.sha256(path.read_bytes()).hexdigest()
        # The first run may have been killed; the last one is whole.
        runs = [json.loads(path.read_text()) for path in sorted(self.path.glob("runs/*/run.json"))]
        kept = [run for run in runs if run.get("mlflow_run")]
        for name in ("scores", "ranking", "similarity"):
            digests[name] = json.dumps(kept[-1][name], sort_keys=True) if kept else "none"
        digests["pairs"] = json.dumps([pair["reports"] for pair in kept[-1]["pairs"]], sort_keys=True) if kept else ""
        return digests


class Soak:
    """The reference and the faults, on running services. Used as a context manager: a reader reads all the while."""

    def __init__(
        self, services: Topology, folder: Path, *, items: int, seed: int, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.services, self.folder, self.say = services, folder, say
        self.random = random.Random(seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, **services.environment(), **IMPATIENT, "OMP_NUM_THREADS": "1"}
        self.seconds: dict[str, float] = {}
        self.reference: dict[str, Any] = {}
        pictures = write_pictures(folder / "pictures.parquet", items)
        self.content = small(
            pictures, name="soak",
            spaces={
                "pixels": {"encoder": "pixels", "column": "image", "control": True},
                "lite0": {"encoder": "efficientnet-lite0", "column": "image"},
                "minilm": {"encoder": "minilm-l6", "column": "en"},
            },
            pairs=[["pixels", "minilm"], ["lite0", "minilm"]], splits={"folds": 3, "seeds": {"item": [0, 1]}},
            # Maps are fitted for a champion; without prompts there is none to register.
            tasks=["retrieval"], zero_shot={"templates": ["{}"]}, champion={"name": "soak"},
            measures=["cka_debiased"], mlflow={"tracking_uri": services.mlflow_url, "experiment": "soak"},
        )  # fmt: skip
        self.config = write_config(folder / "soak.yaml", self.content)
        self.deployment = ""

    def __enter__(self) -> Self:
        subprocess.run([sys.executable, ROOT / "docker" / "buckets.py", BUCKET], env=self.environment, check=True)
        self.log = (self.folder / "reader.log").open("wb")
        self.reader = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.soak.reader", self.folder / "homes", BUCKET], cwd=ROOT,
            env=self.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        self.undisturbed()
        return self

    def __exit__(self, *_: object) -> None:
        for name in [name for name in self.services.services if name.startswith("worker-")]:
            self.services.kill(name)
        for place in (self.folder / "homes").iterdir():
            if place.is_mount():
                subprocess.run(["umount", "-l", place], check=True)
        self.reader.kill()
        self.reader.wait()
        self.log.close()

    def read(self) -> dict[str, Any]:
        """End the reader; gives what it saw."""
        told, _ = self.reader.communicate(timeout=120)
        assert self.reader.returncode == 0, (self.folder / "reader.log").read_text()[-2000:]
        return json.loads(told)

    # A run, by hand and on a schedule

    def undisturbed(self) -> None:
        """The reference: its results, and how long it takes by hand and on a schedule."""
        # Exported graphs are shared by all homes: made before, and not a part of what is timed.
        for name in ("graphs", "reference"):
            home, begun = Home(self, name), time.monotonic()
            run = home.start("run", self.config, "--json")
            _, err = run.communicate(timeout=LIMIT)
            assert run.returncode == 0, err[-3000:]
            self.seconds["by hand"] = time.monotonic() - begun
        self.reference = home.results()
        assert any("results/" in name for name in self.reference), "no map was fitted: nothing to compare"
        self.say(f"undisturbed: {self.seconds['by hand']:.1f} s, {len(self.reference)} digests")
        home = Home(self, "scheduled")
        with self.worker(home):
            add = home.start("schedule", self.config, "--once", "--at", "2035-01-01", "--json")
            _, err = add.communicate(timeout=120)
            assert add.returncode == 0, err[-3000:]
            [(self.deployment,)] = self.services.query("prefect", "select id::text from deployment where name = 'soak'")
            begun = time.monotonic()
            run_id = self.trigger()
            assert self.wait(run_id) == "COMPLETED", self.state(run_id)
            self.seconds["scheduled"] = time.monotonic() - begun
        assert home.results() == self.reference, "a scheduled run gives other results than one by hand"
        self.say(f"undisturbed and scheduled: {self.seconds['scheduled']:.1f} s")

    @contextlib.contextmanager
    def worker(self, home: Home) -> Iterator[str]:
        """A worker for this home, ended with all its runs."""
        name = f"worker-{home.name}"
        self.services.add(name, [sys.executable, "-c", WORKER], environment=home.environment)
        try:
            yield name
        finally:
            self.services.kill(name)
            for process in psutil.process_iter():
                # The runs of a worker that was killed live on.
                with contextlib.suppress(psutil.Error):
                    if process.environ().get("SUTURE_HOME") == str(home.path):
                        process.kill()

    def prefect(self, path: str, content: dict[str, Any]) -> Any:
        user, password = self.services.secrets["prefect_auth"].split(":")
        url = f"{self.services.prefect_url}/{path}"
        answer = requests.post(url, json=content, auth=(user, password), timeout=30)
        answer.raise_for_status()
        return answer.json()

    def trigger(self) -> str:
        """A scheduled run that is due now; gives its id."""
        path = f"deployments/{self.deployment}/create_flow_run"
        return str(self.prefect(path, {"state": {"type": "SCHEDULED"}})["id"])

    def state(self, run_id: str) -> tuple[str, str, str]:
        """A flow run's type of state, its name and message."""
        sql = (
            "select r.state_type::text, r.state_name, coalesce(s.message, '') from flow_run r "
            f"left join flow_run_state s on s.id = r.state_id where r.id = '{run_id}'"
        )
        [(kind, name, message)] = self.services.query("prefect", sql)
        return kind, name, message

    def wait(self, run_id: str, seconds: float = LIMIT) -> str:
        """Wait until a flow run's state is final and stays so; gives the type of state."""
        end, since = time.monotonic() + seconds, 0.0
        while True:
            try:
                kind = self.state(run_id)[0]
            except Exception:
                kind = "DOWN"  # PostgreSQL is away on purpose.
            since = 0.0 if kind not in ("FAILED", "CRASHED", "CANCELLED") else since or time.monotonic()
            # What crashed is taken up by the next sweep.
            if kind == "COMPLETED" or (since and time.monotonic() - since > 25) or time.monotonic() > end:
                return kind
            time.sleep(0.1)

    # Faults

    def faults(self, *, kills: int, worker_kills: int, only: Sequence[str] = ()) -> list[Row]:
        """Every fault in turn, the services' last; of them those whose names hold one of the words `only`."""
        plan: list[tuple[str, Callable[[str], Row]]] = []

        def by_hand(kind: str, act: Callable[[Home, psutil.Process], None]) -> None:
            plan.append((kind, lambda kind: self.by_hand(kind, act)))

        def scheduled(kind: str, act: Callable[[str], None]) -> None:
            plan.append((kind, lambda kind: self.scheduled(kind, act)))

        for number in range(kills):
            if number % 2 == 0:
                by_hand("flow killed", lambda home, run: run.kill())
            else:
                scheduled("scheduled flow killed", self._kill_runs)
        for number in range(worker_kills):
            if number % 2 == 0:
                scheduled("worker and run killed", self.services.restart)
            else:
                scheduled("worker alone killed", self._kill_alone)
        by_hand("disk full", self._fill)
        for name in ("mlflow", "store", "prefect"):
            by_hand(f"{name} stalled", lambda home, run, name=name: self._stall(name))  # type: ignore[misc]
        plan.append(("two flows at once", self.two_at_once))
        plan.append(("two flows at once, a home each", self.two_at_once))
        for name in ("mlflow", "postgres", "prefect"):
            down = partial(self.services.restart, name, down=DOWN)
            by_hand(f"{name} killed", lambda home, run, down=down: down())  # type: ignore[misc]
            scheduled(f"{name} killed under a scheduled run", lambda worker, down=down: down())  # type: ignore[misc]
        rows = []
        for kind, fault in plan:
            if not only or any(word in kind for word in only):
                rows.append(fault(kind))
                self.say(json.dumps(vars(rows[-1])))
        return rows

    def _moment(self, how: str) -> float:
        return self.random.uniform(0, self.seconds[how])

    def by_hand(self, kind: str, act: Callable[[Home, psutil.Process], None]) -> Row:
        """`suture run`, disturbed at a random moment, and started again until it ends well."""
        home, row = self._fresh(kind), Row(kind, self._moment("by hand"))
        begun = time.monotonic()
        run = home.start("run", self.config, "--json")
        before: dict[str, tuple[int, int]] = {}

        def disturb() -> None:
            nonlocal before
            act(home, psutil.Process(run.pid))
            before = home.shards()

        fault = threading.Timer(row.moment, disturb)
        fault.start()
        _, err = run.communicate(timeout=LIMIT)
        fault.join()
        while run.returncode != 0 and row.restarts < 3:
            row.said = f"exit {run.returncode}: {err.strip()[-300:]}"
            if run.returncode != -signal.SIGKILL:
                row.clear &= run.returncode in (2, 3) and err.count("error:") == 1 and "Traceback" not in err
            row.restarts += 1
            (home.path / FILLER).unlink(missing_ok=True)
            run = home.start("run", self.config, "--json")
            _, err = run.communicate(timeout=LIMIT)
        row.finished = run.returncode == 0
        row.seconds = time.monotonic() - begun
        return self._judge(row, home, before)

    def scheduled(self, kind: str, act: Callable[[str], None]) -> Row:
        """A scheduled run, disturbed at a random moment, and taken up by the worker."""
        home, row = self._fresh(kind), Row(kind, self._moment("scheduled"))
        with self.worker(home) as worker:
            begun = time.monotonic()
            run_id = self.trigger()
            time.sleep(row.moment)
            act(worker)
            before = home.shards()
            row.finished = self.wait(run_id) == "COMPLETED"
            row.seconds = time.monotonic() - begun
            row.said = " ".join(self.state(run_id))
            end = time.monotonic() + 20
            # A worker sends to MLflow later what it did not take.
            while time.monotonic() < end and not self._settled(home):
                time.sleep(0.5)
        return self._judge(row, home, before)

    def two_at_once(self, kind: str) -> Row:
        """Two flows at the same time on one store and one MLflow, on one machine or, with a home each, on two."""
        homes, home, row = 2 if "home each" in kind else 1, self._fresh(kind), Row(kind, 0.0)
        places = [
            home,
            *(Home(self, f"{home.name}-{n}", store=home.environment["SUTURE_STORE"]) for n in range(1, homes)),
        ]
        begun = time.monotonic()
        written: set[tuple[Path, int, int]] = set()
        ended = threading.Event()

        def count() -> None:
            while not ended.wait(0.02):
                for place in places:
                    for pattern in ("store/v2/??/*/[0-9]*.json", "results/v*/??/*.json"):
                        for path in place.path.glob(pattern):
                            with contextlib.suppress(FileNotFoundError):
                                stat = path.stat()
                                written.add((path, stat.st_ino, stat.st_mtime_ns))

        counter = threading.Thread(target=count)
        counter.start()
        runs = [place.start("run", self.config, "--json") for place in (places * 2)[:2]]
        said = [run.communicate(timeout=LIMIT)[1] for run in runs]
        ended.set()
        counter.join()
        row.finished = all(run.returncode == 0 for run in runs)
        row.said = " ".join(text.strip()[-200:] for text in said)
        row.seconds = time.monotonic() - begun
        # Homes have results of their own; the store is what they share.
        names = [str(path).partition("/v2/")[2] or str(path) for path, _, _ in written]
        row.kept, row.redone = len(set(names)), len(names) - len(set(names))
        row = self._judge(row, home, {}, keep_counts=True)
        if homes > 1:
            other = places[1].results()
            row.identical &= other == self.reference
            row.leases += places[1].leases()
        return row

    # What comes of it

    def _fresh(self, kind: str) -> Home:
        number = len(list((self.folder / "homes").iterdir()))
        return Home(self, f"{number:03d}-{kind.replace(' ', '-').replace(',', '')}", disk=kind == "disk full")

    def _settled(self, home: Home) -> bool:
        runs = [json.loads(path.read_text()) for path in home.path.glob("runs/*/run.json")]
        return not home.leases() and all(run.get("mlflow_run") for run in runs) and not any(self._left())

    def _left(self) -> tuple[int, int]:
        [(running,)] = self.services.query("mlflow", "select count(*) from runs where status = 'RUNNING'")
        sql = (
            "select count(*) from flow_run where state_type in ('RUNNING', 'PENDING', 'CANCELLING') "
            "or (state_type = 'SCHEDULED' and expected_start_time < now())"
        )
        [(flow_runs,)] = self.services.query("prefect", sql)
        return running, flow_runs

    def _judge(self, row: Row, home: Home, before: dict[str, tuple[int, int]], *, keep_counts: bool = False) -> Row:
        row.running, row.flow_runs = self._left()
        row.leases = home.leases()
        row.identical = home.results() == self.reference
        if not keep_counts:
            after = home.shards()
            row.kept, row.redone = len(before), sum(after.get(name) != mark for name, mark in before.items())
        return row

    # What is done

    def _kill_runs(self, worker: str) -> None:
        for process in self.services.services[worker].tree()[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _kill_alone(self, worker: str) -> None:
        process = self.services.services[worker].process
        assert process
        process.kill()
        process.wait()
        # As a service manager does.
        self.services.services[worker].process = None
        self.services.start(worker)

    def _stall(self, name: str) -> None:
        self.services.stall(name)
        time.sleep(STALL)
        self.services.resume(name)

    def _fill(self, home: Home, run: psutil.Process) -> None:
        """Leave no room on the home's disk; where it has none of its own, no file of the run grows any more."""
        if home.path.is_mount():
            room = os.statvfs(home.path)
            with (home.path / FILLER).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
            return
        for process in [run, *run.children(recursive=True)]:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
