"""One Prefect server for the session, a small data set of real pictures and names, and ways to run the flow and the CLI."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Main = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).parents[2]
ITEMS = 240
COMMAND = [sys.executable, "-m", "flows.cli"]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def wait_until(what: str, true: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 90) -> None:
    """Wait for what another process does, and say so where it ends or takes too long instead."""
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, f"it ended with {process.returncode} before {what}"
        assert time.monotonic() < end, f"{seconds} s passed before {what}"
        time.sleep(0.02)


def answers(url: str) -> bool:
    """Whether a server says 200 there."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, with all of the group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


@contextmanager
def mlflow_server(folder: Path, url: str) -> Iterator[None]:
    """An MLflow server with proxied artifacts at an address of this machine: nobody but it knows where they are."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", str(folder / "artifacts"), "--port", url.rpartition(":")[2], "--workers", "1"),
        ],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until("MLflow answered", lambda: answers(f"{url}/health"), process)
        yield
    finally:
        end(process)


@pytest.fixture(scope="session")
def prefect_server(session_home: Path) -> Iterator[str]:
    """A server that all flows of the session share, also those of other processes; its API's address."""
    place = Path(os.environ["PREFECT_HOME"])
    place.mkdir(parents=True, exist_ok=True)
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui", "--no-services"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until("Prefect's server answered", lambda: answers(f"http://127.0.0.1:{port}/api/health"), server)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
            from prefect.settings import PREFECT_API_URL, temporary_settings

            # Prefect has read the environment where it was imported before.
            with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}):
                yield os.environ["PREFECT_API_URL"]
    finally:
        end(server)


def use_home(folder: Path, session_home: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make a folder SUTURE_HOME; the graphs that are slow to export are shared."""
    folder.mkdir()
    (session_home / "cache").mkdir(exist_ok=True)
    (folder / "cache").symlink_to(session_home / "cache")
    patch.setenv("SUTURE_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory, session_home: Path) -> Iterator[Path]:
    """A SUTURE_HOME that the tests of one module share."""
    with pytest.MonkeyPatch.context() as patch:
        yield use_home(tmp_path_factory.mktemp("module") / "home", session_home, patch)


def png(picture: Any) -> bytes:
    """A picture as PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def write_pictures(path: Path, items: int = ITEMS, broken: tuple[int, ...] = ()) -> Path:
    """Every so-maniest emoji as parquet: key, image, en, de, label, group. The pictures of some rows are cut off."""
    import datasets

    from registry.datasets import create

    emoji = create("emoji", languages=["en", "de"])
    rows = [round(row * (len(emoji.keys) - 1) / (items - 1)) for row in range(items)]
    pictures = [png(emoji.read("image", row)) for row in rows]
    for row in broken:
        pictures[row] = pictures[row][:60]
    assert emoji.labels is not None
    assert emoji.groups is not None
    table = datasets.Dataset.from_dict(
        {
            "key": [emoji.keys[row] for row in rows],
            "image": [{"bytes": data, "path": None} for data in pictures],
            "en": [str(emoji.read("en", row)) for row in rows],
            "de": [str(emoji.read("de", row)) for row in rows],
            "label": [emoji.labels[row] for row in rows],
            "group": [emoji.groups[row] for row in rows],
        }
    )
    table.cast_column("image", datasets.Image()).to_parquet(str(path))
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file of 240 emoji with their English and German names, labels and groups."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "emoji.parquet")


def hub(path: Path, **options: Any) -> dict[str, Any]:
    """The `dataset` of a configuration: a parquet file as `write_pictures` writes it."""
    named = {"image": "image", "text": ["en", "de"], "key": "key", "label": "label", "group": "group"}
    return {
        "name": "hub",
        "options": {"path": "parquet", "data_files": str(path), "split": "train", **named, **options},
    }


def write_config(path: Path, content: dict[str, Any]) -> Path:
    """A configuration as a YAML file."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def small(path: Path, **changes: Any) -> dict[str, Any]:
    """The smallest configuration of two real encoders: less than three seconds."""
    return {
        "name": "small",
        "dataset": hub(path),
        "spaces": {
            "pixels": {"encoder": "pixels", "column": "image", "control": True},
            "glove": {"encoder": "glove-6b-50d", "column": "en"},
        },
        "pairs": [["pixels", "glove"]],
        "maps": ["ridge", "procrustes"],
        "splits": {"folds": 3},
        "on_bad_item": "skip",
        **changes,
    }


@pytest.fixture(scope="session")
def flow(prefect_server: str) -> Callable[[Path], dict[str, Any]]:
    """Run the flow with a configuration in this process; gives the kept run."""

    def run(path: Path) -> dict[str, Any]:
        from flows.align_spaces import align_spaces, new_run
        from flows.config import load_config
        from registry.results import load_run

        config = load_config(path)
        return load_run(align_spaces(config, new_run(config)))

    return run


@pytest.fixture
def cli(prefect_server: str) -> Cli:
    """Run ``suture`` in a process of its own."""

    def run(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=150, **options
        )

    return run


@pytest.fixture
def main(prefect_server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Main:
    """Run ``suture`` in this process, which spares its imports; gives the exit code, stdout and stderr."""

    def run(*words: Any) -> tuple[int, str, str]:
        from flows.cli import main

        monkeypatch.setattr(sys, "argv", ["suture", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capfd.readouterr()

    return run


def files_of(folder: Path) -> dict[str, int]:
    """Every file below a folder with the time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
