"""The MLflow record of a run: one parent run, one child a pair, with metrics, provenance and pictures."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import yaml
from filelock import FileLock

from align.evaluation import HEAD
from registry.errors import UserError, one_line
from registry.home import home

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG = "suture.run"


class TrackingUnavailable(UserError):
    """The MLflow server does not answer; results are kept, and can be sent later."""

    exit_code = 3


def default_tracking_uri() -> str:
    """The SQLite database under SUTURE_HOME."""
    return f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def check_tracking(uri: str, *, timeout: float = 5.0) -> None:
    """Raise `TrackingUnavailable` at once where a server does not answer, instead of retrying for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=timeout):
            pass
    except urllib.error.HTTPError:
        return  # It answers; what it says is for the client to handle.
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingUnavailable(f"the MLflow server at {uri} does not answer ({reason})") from None


def client(uri: str | None = None) -> MlflowClient:
    """A client of the tracking server, or of the default database, which is made where it is not there."""
    from mlflow import MlflowClient

    uri = uri or default_tracking_uri()
    check_tracking(uri)
    if uri.startswith("sqlite:///"):
        _make_database(Path(uri.removeprefix("sqlite:///")))
    return MlflowClient(tracking_uri=uri)


def _make_database(path: Path) -> None:
    """Make a SQLite database for MLflow where there is none: whole or not at all, and once.

    MLflow makes its tables at the first question, one by one: two who ask at once would be in each other's way, and
    a full disk would leave a half that nobody can use.
    """
    from mlflow import MlflowClient

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists():
            return
        draft = path.with_name(f".{path.name}.draft-{uuid4().hex}")
        try:
            MlflowClient(tracking_uri=f"sqlite:///{draft}").search_experiments(max_results=1)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def warm_up(uri: str | None = None) -> None:
    """Import MLflow and make the default database, so that recording later need not wait; never fails."""
    with suppress(Exception):
        client(uri)


def _experiment(mlflow: MlflowClient, name: str, uri: str) -> str:
    found = mlflow.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            mlflow.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    # The default database would put artifacts relative to the working directory.
    # So would any other SQLite file.
    database = Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
    location = (database.parent / "artifacts").as_uri() if database else None
    return str(mlflow.create_experiment(name, artifact_location=location))


@contextmanager
def _run(mlflow: MlflowClient, experiment: str, name: str, tags: dict[str, str], start: int) -> Iterator[str]:
    """A run that never stays RUNNING: it ends FINISHED, or FAILED where recording it failed."""
    run_id = mlflow.create_run(experiment, run_name=name, tags=tags, start_time=start).info.run_id
    try:
        yield run_id
    except BaseException:
        with suppress(Exception):
            mlflow.set_terminated(run_id, "FAILED")
        raise
    mlflow.set_terminated(run_id, "FINISHED")


def metric_name(*parts: str) -> str:
    """A metric's name with only what MLflow allows: letters, digits and ``_ - . space : /``."""
    return "/".join(re.sub(r"\s+", " ", re.sub(r"[^\w\-. :]", "", part)).strip() for part in parts)


def record(run: dict[str, Any], *, tracking_uri: str | None, experiment: str) -> str:
    """Send a kept run to MLflow; gives the parent run's id. Sending it again does nothing.

    Raises `TrackingUnavailable` where the server does not answer. A recording that broke off is replaced.
    """
    uri = tracking_uri or default_tracking_uri()
    with _answering(uri):
        return _record(run, client(uri), uri, experiment)


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """What MLflow's client says of a server that broke off, as `TrackingUnavailable`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if uri.startswith(("http://", "https://")) and "API request" in str(error):
            raise TrackingUnavailable(f"the MLflow server at {uri} failed: {one_line(error)}") from None
        raise


def _record(run: dict[str, Any], mlflow: MlflowClient, uri: str, experiment: str) -> str:
    experiment_id = _experiment(mlflow, experiment, uri)
    for old in mlflow.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run['id']}'"):
        if "mlflow.parentRunId" in old.data.tags:
            continue
        if old.info.status == "FINISHED":
            return str(old.info.run_id)
        _delete(mlflow, experiment_id, old.info.run_id)
    start = int(run["started_ms"])
    with _run(mlflow, experiment_id, run["id"], {RUN_TAG: run["id"], "suture.config": run["name"]}, start) as parent:
        _log_parent(mlflow, parent, run)
        for pair in run["pairs"]:
            name = f"{pair['source']} -> {pair['target']}"
            tags = {RUN_TAG: run["id"], "mlflow.parentRunId": parent, "suture.pair": name}
            with _run(mlflow, experiment_id, name, tags, start) as child:
                _log_pair(mlflow, child, run, pair)
    return parent


def add_artifacts(run_id: str, files: list[tuple[Path, str]], *, tracking_uri: str | None) -> None:
    """Add files to a recorded run, each under the given folder of its artifacts."""
    uri = tracking_uri or default_tracking_uri()
    with _answering(uri):
        mlflow = client(uri)
        for path, folder in files:
            mlflow.log_artifact(run_id, str(path), folder or None)


def _delete(mlflow: MlflowClient, experiment: str, parent: str) -> None:
    for child in mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'"):
        mlflow.delete_run(child.info.run_id)
    mlflow.delete_run(parent)


def _log(mlflow: MlflowClient, run_id: str, metrics: dict[str, float], params: dict[str, Any]) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    made = [Metric(name, float(value), now, 0) for name, value in metrics.items()]
    given = [Param(name, str(value)[:5900]) for name, value in params.items()]
    for start in range(0, len(made), 900):
        mlflow.log_batch(run_id, metrics=made[start : start + 900])
    for start in range(0, len(given), 100):
        mlflow.log_batch(run_id, params=given[start : start + 100])


def _log_parent(mlflow: MlflowClient, run_id: str, run: dict[str, Any]) -> None:
    params: dict[str, Any] = {
        "dataset": run["dataset"]["name"],
        "items": run["dataset"]["items"],
        "pairs": len(run["pairs"]),
        "maps": ", ".join(dict.fromkeys(score["map"] for score in run["scores"])),
        "splits": ", ".join(f"{split['kind']} (seed {split['seed']})" for split in run["splits"]),
    }
    for space in run["spaces"]:
        params[f"space/{space['name']}"] = (
            f"{space['encoder']} on {space['column']}, {space['rows']} x {space['dimension']}, "
            f"weights {space['weights'][:12]}, data {space['data'][:12]}" + (", control" if space["control"] else "")
        )
    params |= {f"version/{name}": version for name, version in run["versions"].items()}
    metrics = {metric_name("seconds", name): value for name, value in run["timings"].items()}
    if run["champion"]:
        best = run["champion"]
        metrics[metric_name("champion", f"cross-validated {best['task']} {best['metric']}")] = best["value"]
    _log(mlflow, run_id, metrics, params)
    mlflow.set_tag(run_id, "mlflow.note.content", _note(run))
    mlflow.log_text(run_id, yaml.safe_dump(run["config"], sort_keys=False), "config.yaml")
    mlflow.log_dict(run_id, run, "run.json")
    if run["scores"]:
        mlflow.log_table(run_id, _columns(run["scores"]), "scores.json")
    if run["ranking"]:
        mlflow.log_table(run_id, _columns(run["ranking"]), "ranking.json")


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows of plain values as columns; what is nested is left to run.json."""
    plain = [key for key, value in rows[0].items() if not isinstance(value, dict | list)]
    return {key: [row[key] for row in rows] for key in plain}


def _note(run: dict[str, Any]) -> str:
    """What the run's page says first, in Markdown."""
    lines = [
        f"{len(run['spaces'])} spaces of *{run['dataset']['name']}*, {len(run['pairs'])} pairs. See **report.html** below."
    ]
    if best := run["champion"]:
        lines.append(
            f"Champion by cross-validation on the anchors: **{best['source']} -> {best['target']}** by **{best['map']}** "
            f"(zero-shot {best['metric']} {best['value']:.3f})."
        )
    lines += [f"Note: {note}" for note in run["notes"]]
    return "\n\n".join(lines)


def _log_pair(mlflow: MlflowClient, run_id: str, run: dict[str, Any], pair: dict[str, Any]) -> None:
    spaces = {space["name"]: space for space in run["spaces"]}
    metrics: dict[str, float] = {"seconds": pair["seconds"]}
    for score in run["scores"]:
        if (score["source"], score["target"]) != (pair["source"], pair["target"]):
            continue
        by = score["map"] if score["rule"] in ("cosine", HEAD) else f"{score['map']} by {score['rule']}"
        name = metric_name(score["split"], score["task"], score["metric"], by)
        metrics |= {name: score["value"], f"{name}.low": score["low"], f"{name}.high": score["high"]}
        for baseline, value in score["baselines"].items():
            at = metric_name(score["split"], score["task"], score["metric"], "baseline")
            # Only the shuffled baseline depends on the map; the others are one number for all maps. With another rule
            # than the cosine the identity's and the shuffled pairs' scores are left to the record.
            if by != score["map"]:
                continue
            metrics[f"{name}.shuffled" if baseline == "shuffled" else f"{at} {baseline}"] = value
    params: dict[str, Any] = {}
    for side in ("source", "target"):
        space = spaces[pair[side]]
        params |= {f"{side}": space["name"]} | {
            f"{side}/{key}": space[key]
            for key in ("encoder", "modality", "column", "dimension", "weights", "data", "licence")
        }
    _log(mlflow, run_id, metrics, params)
    mlflow.log_dict(run_id, pair["reports"], "map_reports.json")
