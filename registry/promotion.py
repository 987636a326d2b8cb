"""The life of a registered stitched model: found by its alias, promoted by proof, rolled back, and shown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import unquote, urlparse

import numpy as np
from filelock import FileLock

from align.score import FEW, Outcomes, paired_test
from registry import stitched, stitched_model
from registry.encoders import create
from registry.encoders.base import Encoder
from registry.errors import UserError, one_line, unknown
from registry.home import home
from registry.record import client, default_tracking_uri
from registry.results import ResultStore, load_run, run_ids, runs_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
LEVEL = 0.05
"""The chance, over a registered model's whole life, that a challenger which is no better is ever promoted."""
TAG = "suture.promotion."
MINIMUM = FEW


class SameModel(UserError):
    """The version to be promoted is what the champion is already."""


# --- the test


@dataclass(frozen=True)
class Decision:
    """What a promotion test said, and what it rests on.

    Attributes
    ----------
    promoted : whether the challenger has proven itself.
    test : 'better', or 'not worse' by the margin.
    difference, low, high : challenger minus champion, with the 95 % bootstrap interval.
    p_value : one-sided, and `alpha`, what it had to be at most, of the `k`-th test of this registered model.
    n : held-out units (items, or groups) that both were judged on.
    """

    promoted: bool
    test: str
    difference: float
    low: float
    high: float
    p_value: float
    alpha: float
    k: int
    n: int
    margin: float | None = None


def alpha_of(k: int, level: float = LEVEL) -> float:
    """What the k-th test (from 1) may spend of the level: level * 6 / (pi^2 k^2), which adds up to the level.

    By the union bound the chance of any false promotion stays below the level however many nights there are and however
    the tests depend on each other. They do: all look at the same held-out items, which is why online procedures that
    need independent p-values (LORD, alpha investing) are not used.
    """
    return level * 6 / (math.pi * k) ** 2


def decide(
    champion: Outcomes,
    challenger: Outcomes,
    *,
    k: int = 1,
    level: float = LEVEL,
    margin: float | None = None,
    replicates: int = 2000,
) -> Decision:
    """Judge a challenger against the champion by their outcomes on the same items, in the k-th test of a registry.

    Without a margin: is it better? The sign-flip test over units, exact where each unit is one hit or miss (McNemar's
    exact test). With one: is it worse by less than the margin? A test by betting (Waudby-Smith and Ramdas 2024): under
    the hypothesis that it is worse by the margin or more no stake grows on average, so one that has grown 1 / alpha-fold
    is that rare (Markov). It holds for every n and needs no more than units drawn independently. `replicates` are of the
    interval.

    Raises ValueError for outcomes of different items, outcomes outside 0 to 1, and a margin outside 0 to 1.
    """
    alpha = alpha_of(k, level)
    exact = len(set(champion.units)) == len(champion.units) and _hits(champion.values) and _hits(challenger.values)
    if not exact and margin is None:
        # A Monte-Carlo p-value must be able to reach alpha.
        replicates = min(200_000, max(replicates, math.ceil(10 / alpha)))
    compared = paired_test(challenger, champion, replicates=replicates)
    gaps = _by_unit(challenger) - _by_unit(champion)
    if margin is None:
        p = _better(gaps) if exact else (compared.p_value / 2 if compared.difference > 0 else 1.0)
    else:
        if not 0 < margin < 1:
            raise ValueError(f"a margin must lie between 0 and 1, got {margin}")
        p = _not_worse(gaps, margin)
    return Decision(
        promoted=p <= alpha, test="better" if margin is None else "not worse", difference=compared.difference,
        low=compared.low, high=compared.high, p_value=p, alpha=alpha, k=k, n=compared.n, margin=margin,
    )  # fmt: skip


def _hits(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0, 1)).all())


def _by_unit(outcomes: Outcomes) -> np.ndarray:
    """The mean of each unit's outcomes, units in sorted order."""
    if not ((outcomes.values >= 0) & (outcomes.values <= 1)).all():
        raise ValueError("promotion compares outcomes from 0 to 1: hits, or reciprocal ranks")
    _, codes, counts = np.unique(np.asarray(outcomes.units), return_inverse=True, return_counts=True)
    return np.bincount(codes, outcomes.values) / counts


def _better(gaps: np.ndarray) -> float:
    """The exact one-sided p-value of wins against losses."""
    from scipy.stats import binom

    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    return float(binom.sf(wins - 1, wins + losses, 0.5)) if wins + losses else 1.0


def _not_worse(gaps: np.ndarray, margin: float) -> float:
    """The inverse of the mean stake of bettors who back every unit with a fixed share, from none to all."""
    stakes = np.linspace(0, 1, 102)[1:-1] / (1 - margin)
    grown = np.log1p(np.outer(stakes, gaps + margin)).sum(1)
    top = grown.max()
    return float(min(1.0, np.exp(-top - np.log(np.mean(np.exp(grown - top))))))


# --- the registry


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """What MLflow says of a name that is not there, as a `UserError`; of a server that broke off too."""
    from mlflow.exceptions import MlflowException

    from registry.record import TrackingUnavailable

    try:
        yield
    except MlflowException as error:
        if "API request" in str(error):
            raise TrackingUnavailable(f"the MLflow server at {uri} failed: {one_line(error)}") from None
        raise UserError(f"MLflow at {uri}: {one_line(error)}") from None


def _registered(mlflow: MlflowClient, name: str) -> Any:
    names = {one.name: one for one in mlflow.search_registered_models(max_results=1000)}
    if name not in names:
        raise (
            unknown("registered model", name, names)
            if names
            else UserError("no model is registered yet: make a run whose configuration has  champion: {name: ...}")
        )
    return mlflow.get_registered_model(name)


def version_of(mlflow: MlflowClient, uri: str) -> ModelVersion:
    """The version that ``models:/name@alias`` or ``models:/name/version`` names; raises `UserError` for none."""
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if not at:
        name, _, number = name.partition("/")
    registered = _registered(mlflow, name)
    if at:
        if alias not in registered.aliases:
            raise unknown(f"alias of '{name}'", alias, registered.aliases)
        number = registered.aliases[alias]
    numbers = {str(one.version): one for one in mlflow.search_model_versions(f"name = '{name}'", max_results=1000)}
    if str(number) not in numbers:
        raise unknown(f"version of '{name}'", str(number), numbers)
    return mlflow.get_model_version(name, str(number))


def find(model: str, *, tracking_uri: str | None = None) -> Path:
    """The folder of a stitched model: a folder or one ONNX file's, a run's champion, or a registered one.

    A model of a remote server is fetched once and kept under SUTURE_HOME. What is found is checked by whoever loads it.
    Raises `UserError` for what is not there.
    """
    if model.startswith("models:/"):
        uri = tracking_uri or default_tracking_uri()
        with _answering(uri):
            return _fetch(version_of(client(uri), model), uri)
    path = Path(model)
    if path.is_dir():
        inside = path / "artifacts" / "stitched"
        return inside if (path / "MLmodel").is_file() and inside.is_dir() else path
    if path.exists() or "/" in model:
        raise UserError(f"'{model}' is no folder of a stitched model: give one, a run, or models:/NAME@ALIAS")
    run = load_run(model)
    folder = runs_folder() / run["id"] / "champion"
    if run["champion"] is None:
        _explain_none(run)
    if not folder.is_dir():
        raise UserError(f"the champion of run {run['id']} was not exported: send it with  suture record {run['id']}")
    return folder


def _explain_none(run: dict[str, Any]) -> NoReturn:
    """Raise the `UserError` that says why a run has no champion: an encoder that cannot travel, most often."""
    modality = {space["name"]: space["modality"] for space in run["spaces"]}
    for names in run["config"]["pairs"]:
        sides = [run["config"]["spaces"][name] for name in names]
        if [modality[name] for name in names] != ["image", "text"] or any(
            side["control"] or side["encoder"] == "precomputed" for side in sides
        ):
            continue
        image, text = (create(side["encoder"], **side["options"]) for side in sides)
        stitched.check_encoders(cast(Encoder, image), cast(Encoder, text))
    raise UserError(
        f"run {run['id']} has no champion: its configuration has to name one, give zero_shot templates, and pair an "
        "image encoder with a text encoder"
    )


def _fetch(version: ModelVersion, uri: str) -> Path:
    import mlflow

    place = urlparse(version.source)
    if place.scheme in ("", "file"):
        folder = Path(unquote(place.path)) / "artifacts" / "stitched"
        if not folder.is_dir():
            raise UserError(f"the files of {version.name} version {version.version} are not at '{folder}'")
        return folder
    kept = home() / "models" / str(version.model_id or f"{version.name}-{version.version}")
    if not kept.is_dir():
        with stitched._appearing(kept) as draft:
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"{version.source}/artifacts/stitched", dst_path=str(draft), tracking_uri=uri
            )
    return kept / "stitched"


# --- promotion


def promote(
    name: str,
    *,
    version: str | None = None,
    margin: float | None = None,
    level: float = LEVEL,
    tracking_uri: str | None = None,
) -> dict[str, Any]:
    """Move @champion of a registered model to a version (default: @challenger) if it has proven itself.

    Both are judged on the held-out items of the first split that both their runs have, by zero-shot accuracy (see
    `decide`). With a margin a version whose files are smaller is promoted where it is not worse by the margin. Every test
    of a registered model spends of one budget (`alpha_of`); their number and level are kept as its tags, written before
    the outcomes are looked at, and the evidence as tags of the version. The first champion needs no test.

    Returns the evidence. Raises `UserError` for what is not there, a version that was tested against this champion
    already, outcomes that are not kept, fewer than 30 common items, and another level than the one before.
    """
    uri = tracking_uri or default_tracking_uri()
    if not 0 < level < 1:
        raise UserError(f"level must lie between 0 and 1, got {level}")
    if margin is not None and not 0 < margin < 1:
        raise UserError(f"margin must lie between 0 and 1, got {margin}")
    home().mkdir(parents=True, exist_ok=True)
    # Two at once must not spend the same part of the budget.
    with _answering(uri), FileLock(home() / "promotion.lock"):
        mlflow = client(uri)
        challenger = version_of(mlflow, f"models:/{name}/{version}" if version else f"models:/{name}@{CHALLENGER}")
        registered = mlflow.get_registered_model(name)
        before = registered.aliases.get(CHAMPION)
        if before is None:
            _move(mlflow, registered, str(challenger.version))
            return {"promoted": True, "version": str(challenger.version), "against": None, "test": "first"}
        if str(before) == str(challenger.version):
            raise UserError(f"version {before} of '{name}' is the champion already")
        champion = mlflow.get_model_version(name, str(before))
        if challenger.tags.get(f"{TAG}against") == str(before):
            raise UserError(
                f"version {challenger.version} of '{name}' was tested against version {before} already: "
                f"{challenger.tags.get(f'{TAG}decision', 'the test broke off')}"
            )
        folders = [_fetch(one, uri) for one in (challenger, champion)]
        new, old = (json.loads((folder / "config.json").read_bytes()) for folder in folders)
        if (new["parts"], new["templates"]) == (old["parts"], old["templates"]):
            raise SameModel(
                f"version {challenger.version} of '{name}' is the same model as its champion, version {before}: "
                "there is nothing to test"
            )
        sizes = {}
        if margin is not None:
            sizes = dict(zip(("bytes", "champion_bytes"), map(size_of, folders), strict=True))
            if sizes["bytes"] >= sizes["champion_bytes"]:
                raise UserError(
                    f"a margin is for a smaller model: version {challenger.version} has {sizes['bytes'] / 1e6:.1f} MB, "
                    f"the champion {sizes['champion_bytes'] / 1e6:.1f} MB"
                )
        first, second, items = common_outcomes(champion, challenger)
        if (spent := float(registered.tags.get(f"{TAG}level", level))) != level:
            raise UserError(
                f"the tests of '{name}' have the level {spent}, which cannot change between them to {level}"
            )
        k = int(registered.tags.get(f"{TAG}tests", 0)) + 1
        mlflow.set_registered_model_tag(name, f"{TAG}level", str(level))
        mlflow.set_registered_model_tag(name, f"{TAG}tests", str(k))
        number = str(challenger.version)
        mlflow.set_model_version_tag(name, number, f"{TAG}against", str(before))
        decision = decide(first, second, k=k, level=level, margin=margin)
        evidence = {"version": number, "against": str(before), **asdict(decision), **sizes, **items}
        for key, value in evidence.items():
            mlflow.set_model_version_tag(name, number, f"{TAG}{key}", str(value))
        mlflow.set_model_version_tag(name, number, f"{TAG}decision", sentence(evidence))
        if decision.promoted:
            _move(mlflow, registered, number)
        return evidence


def sentence(evidence: dict[str, Any]) -> str:
    """A decision in one line."""
    if evidence["against"] is None:
        return f"version {evidence['version']} is the first champion: there was nothing to test it against"
    verdict = "promoted" if evidence["promoted"] else "not promoted"
    margin = f" by {evidence['margin']:g}" if evidence["margin"] is not None else ""
    return (
        f"{verdict}: is version {evidence['version']} {evidence['test']}{margin} than version {evidence['against']}? "
        f"difference {evidence['difference']:+.4f} [{evidence['low']:+.4f}, {evidence['high']:+.4f}] in "
        f"{evidence['metric']} on {evidence['n']} held-out {evidence['unit']}, p {evidence['p_value']:.2g}, "
        f"needed {evidence['alpha']:.2g} (test {evidence['k']} of this model)"
    )


def rollback(name: str, *, tracking_uri: str | None = None) -> dict[str, Any]:
    """Let @champion point at the version that it pointed at before; raises `UserError` where there was none."""
    uri = tracking_uri or default_tracking_uri()
    home().mkdir(parents=True, exist_ok=True)
    with _answering(uri), FileLock(home() / "promotion.lock"):
        mlflow = client(uri)
        registered = _registered(mlflow, name)
        before = _history(registered)
        if not before or CHAMPION not in registered.aliases:
            raise UserError(f"'{name}' had no champion before this one: there is nothing to roll back to")
        mlflow.set_registered_model_alias(name, CHAMPION, before[-1])
        mlflow.set_registered_model_tag(name, f"{TAG}history", ",".join(before[:-1]))
        return {"version": before[-1], "instead_of": str(registered.aliases[CHAMPION])}


def _history(registered: Any) -> list[str]:
    """Earlier champions, oldest first."""
    return [number for number in registered.tags.get(f"{TAG}history", "").split(",") if number]


def _move(mlflow: MlflowClient, registered: Any, number: str) -> None:
    """Let @champion point at a version, and keep which one it was; nobody is the challenger then."""
    if CHAMPION in registered.aliases:
        before = [*_history(registered), str(registered.aliases[CHAMPION])]
        mlflow.set_registered_model_tag(registered.name, f"{TAG}history", ",".join(before))
    mlflow.set_registered_model_alias(registered.name, CHAMPION, number)
    if str(registered.aliases.get(CHALLENGER)) == number:
        mlflow.delete_registered_model_alias(registered.name, CHALLENGER)


def size_of(folder: Path) -> int:
    """Bytes of a stitched model's graphs."""
    return sum((folder / name).stat().st_size for name in stitched_model.GRAPHS)


def common_outcomes(champion: ModelVersion, challenger: ModelVersion) -> tuple[Outcomes, Outcomes, dict[str, Any]]:
    """What both versions answered on the held-out items of the first split, which their maps never saw.

    The artifact is the map of the first split, so no other split is looked at.
    """
    metric = ("cosine", "zero_shot", "accuracy")
    found: list[tuple[dict[str, tuple[float, str]], tuple[str, int]]] = []
    for one in (champion, challenger):
        run = run_of(one)
        kind, seed, addresses = run["addresses"]["evaluate"][0]
        kept = ResultStore().get(addresses.get(one.tags.get("suture.pair"), ""))
        key = "\t".join((one.tags.get("suture.map", ""), *metric))
        if kept is None or key not in kept[1]:
            raise UserError(
                f"the outcomes of version {one.version} of '{one.name}' are not kept any more: run its configuration again"
            )
        content, arrays = kept
        rows = zip(content["items"], arrays[key].tolist(), content["units"], strict=True)
        found.append(({item: (value, unit) for item, value, unit in rows}, (kind, seed)))
    (first, split), (second, other) = found
    items = [item for item in first if item in second and first[item][1] == second[item][1]] if split == other else []
    units = [first[item][1] for item in items]
    if len(set(units)) < MINIMUM:
        raise UserError(
            f"versions {champion.version} and {challenger.version} of '{champion.name}' have only {len(set(units))} "
            f"held-out {'groups' if split[0] == 'group' else 'items'} in common, and {MINIMUM} are needed: run both "
            "configurations on the same data and splits"
        )
    made = [Outcomes(np.array([one[item][0] for item in items]), units) for one in (first, second)]
    about = {
        "metric": "zero-shot accuracy", "unit": "groups" if split[0] == "group" else "items",
        "items": len(items), "of_items": len(first), "values": [one.value() for one in made],
    }  # fmt: skip
    return made[0], made[1], about


# --- looking


def run_of(version: ModelVersion) -> dict[str, Any]:
    """The kept run that a version was made by; raises `UserError` where it is not kept here."""
    run_id = version.tags.get("suture.run")
    if run_id not in run_ids():
        raise UserError(f"the run of version {version.version} of '{version.name}', {run_id}, is not kept here")
    return load_run(run_id)


def models(*, tracking_uri: str | None = None) -> list[dict[str, Any]]:
    """Every registered model: its versions, where its aliases point, and what its budget of tests is."""
    uri = tracking_uri or default_tracking_uri()
    with _answering(uri):
        mlflow = client(uri)
        rows = []
        for one in mlflow.search_registered_models(max_results=1000):
            registered = mlflow.get_registered_model(one.name)
            versions = mlflow.search_model_versions(f"name = '{one.name}'", max_results=1000)
            number = registered.aliases.get(CHAMPION)
            champion = next((v for v in versions if str(v.version) == str(number)), None)
            rows.append(
                {
                    "model": one.name, "versions": len(versions),
                    "aliases": ", ".join(f"@{alias} {at}" for alias, at in sorted(registered.aliases.items())),
                    "champion": champion and f"{champion.tags.get('suture.pair')} by {champion.tags.get('suture.map')}",
                    "tests": int(registered.tags.get(f"{TAG}tests", 0)),
                    "stale": "; ".join(stale(champion)) if champion else "",
                }
            )  # fmt: skip
        return rows


def describe(model: str, *, tracking_uri: str | None = None) -> dict[str, Any]:
    """A registered version: lineage (data, weights, configuration, code), evidence, and whether it is stale."""
    uri = tracking_uri or default_tracking_uri()
    with _answering(uri):
        mlflow = client(uri)
        version = version_of(mlflow, model)
        registered = mlflow.get_registered_model(version.name)
        try:
            lineage = lineage_of(version)
        except UserError as error:
            lineage = {"note": str(error)}
        return {
            "model": version.name,
            "version": str(version.version),
            "aliases": sorted(alias for alias, at in registered.aliases.items() if str(at) == str(version.version)),
            "run": version.tags.get("suture.run"),
            "mlflow_run": version.run_id,
            "pair": version.tags.get("suture.pair"),
            "map": version.tags.get("suture.map"),
            "lineage": lineage,
            "evidence": {
                key.removeprefix(TAG): value for key, value in sorted(version.tags.items()) if key.startswith(TAG)
            },
            "tests": int(registered.tags.get(f"{TAG}tests", 0)),
            "history": _history(registered),
            "stale": stale(version),
        }


def lineage_of(version: ModelVersion) -> dict[str, Any]:
    """What a version was made of: its run's data, both spaces, configuration and versions of code."""
    run = run_of(version)
    names = version.tags.get("suture.pair", "").split(" -> ")
    facts = ("name", "encoder", "column", "weights", "data", "licence", "preprocessing", "backend")
    return {
        "data": run["dataset"],
        "spaces": [{fact: space[fact] for fact in facts} for space in run["spaces"] if space["name"] in names],
        "configuration": run["config"],
        "code": run["versions"],
    }


def stale(version: ModelVersion) -> list[str]:
    """What has changed since: the spaces of a version whose weights or data the latest run with them has otherwise.

    The latest run counts that has both spaces by their names and columns. Empty for a version that is up to date, and
    for one whose run is not kept here.
    """
    if version.tags.get("suture.run") not in run_ids():
        return []
    mine = {(one["name"], one["column"]): one for one in lineage_of(version)["spaces"]}
    for run_id in reversed(run_ids()):
        latest = {(one["name"], one["column"]): one for one in load_run(run_id)["spaces"]}
        if mine.keys() <= latest.keys():
            return [
                f"{at[0]}: its {fact} changed with run {run_id}"
                for at, space in mine.items()
                for fact in ("weights", "data")
                if latest[at][fact] != space[fact]
            ]
    return []
