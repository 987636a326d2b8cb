"""The steps of a run as plain functions: references in, references out; every result is kept and found again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from align import Pair, Split, load_map
from align.evaluation import Anchors, Evaluation, Tasks, pool
from align.maps import Identity
from align.measures.matrix import similarity_matrices
from align.pair import split as split_items
from align.tasks.classification import LinearHead
from flows.config import RunConfig, SpaceConfig
from registry import datasets, encoders, report
from registry.datasets.base import Dataset
from registry.datasets.prompts import Prompts
from registry.encoders.base import Encoder, ExportableImage, ExportableText, FromHub, HasHead
from registry.encoders.hub import newer_revision
from registry.encoders.precomputed import Precomputed
from registry.errors import UserError, one_line
from registry.extract import adopt, extract, identity, precomputed_identity
from registry.home import home
from registry.record import add_artifacts, default_tracking_uri, record
from registry.results import ResultStore, address, load_run, runs_folder, save_run
from registry.stitched import export, log_model
from registry.store import EmbeddingStore

Progress = Callable[[int], None]


def store() -> EmbeddingStore:
    """The embedding store of this machine's user."""
    return EmbeddingStore(home() / "store")


@cache
def _dataset(name: str, options: str) -> Dataset:
    return datasets.create(name, **json.loads(options))


def dataset_of(config: RunConfig) -> Dataset:
    """The configured data set, made once a process."""
    return _dataset(config.dataset.name, json.dumps(config.dataset.options, sort_keys=True))


def encoder_of(space: SpaceConfig) -> Encoder | Precomputed:
    """The space's encoder; nothing is loaded yet."""
    return encoders.create(space.encoder, **space.options)


# --- embed


def embed_plan(config: RunConfig, name: str) -> tuple[str, int]:
    """A space's store key and its number of items, without computing anything."""
    space, encoder, dataset = config.spaces[name], encoder_of(config.spaces[name]), dataset_of(config)
    if isinstance(encoder, Precomputed):
        return precomputed_identity(encoder).key, len(encoder.load()[0])
    assert space.column is not None
    wanted = identity(encoder, dataset, space.column, dtype=space.dtype, on_bad_item=config.on_bad_item)
    return wanted.key, len(dataset.keys)


def embed(config: RunConfig, name: str, progress: Progress) -> str:
    """Embed one space into the store, or find it there; gives its key."""
    space, encoder = config.spaces[name], encoder_of(config.spaces[name])
    if isinstance(encoder, Precomputed):
        return adopt(store(), encoder)
    assert space.column is not None
    return extract(
        store(), encoder, dataset_of(config), space.column,
        dtype=space.dtype, on_bad_item=config.on_bad_item, progress=progress,
    )  # fmt: skip


def prompt_targets(config: RunConfig) -> list[str]:
    """The spaces that class prompts are embedded in: text targets of image sources."""
    if config.zero_shot is None:
        return []
    wanted = [t for s, t in config.pairs if modality(config, s) == "image" and modality(config, t) == "text"]
    return [t for t in dict.fromkeys(wanted) if config.spaces[t].encoder != "precomputed"]


def modality(config: RunConfig, name: str) -> str:
    """'image' or 'text': of the column that the space embeds."""
    space = config.spaces[name]
    if space.column is None:
        return str(space.options.get("modality", ""))
    columns = dataset_of(config).columns
    if space.column not in columns:
        raise UserError(
            f"spaces.{name}: data set '{config.dataset.name}' has no column '{space.column}'; valid: {', '.join(columns)}"
        )
    return columns[space.column]


def prompts_of(config: RunConfig) -> Prompts:
    """The class prompts: every label in every template."""
    assert config.zero_shot is not None
    labels = dataset_of(config).labels
    if labels is None:
        raise UserError(f"zero_shot needs labels, and data set '{config.dataset.name}' has none")
    names = config.zero_shot.class_names
    return Prompts([names.get(label, label) for label in sorted(set(labels))], list(config.zero_shot.templates))


def prompts_key(config: RunConfig, name: str) -> str:
    """The store key of the class prompts in a target's space."""
    encoder = encoder_of(config.spaces[name])
    assert not isinstance(encoder, Precomputed)
    return identity(encoder, prompts_of(config), "prompt").key


def embed_prompts(config: RunConfig, name: str) -> str:
    """Embed the class prompts by a target's encoder; gives the store key."""
    encoder = encoder_of(config.spaces[name])
    assert not isinstance(encoder, Precomputed)
    return extract(store(), encoder, prompts_of(config), "prompt", dtype="float32")


# --- fit and evaluate


def _split_of(config: RunConfig, dataset: Dataset, keys: list[str], kind: str, seed: int) -> Split:
    groups = None
    if kind == "group":
        if dataset.groups is None:
            raise UserError(f"a split by group needs groups, and data set '{dataset.name}' has none; use kind 'item'")
        of_item = dict(zip(dataset.keys, dataset.groups, strict=True))
        groups = [of_item[key] for key in keys]
    try:
        return split_items(
            keys, groups, held_out=config.splits.held_out, n_folds=config.splits.folds, random_state=seed
        )
    except ValueError as error:
        raise UserError(f"splits: {error}") from None


class Workbench:
    """Joined pairs on one split, with what pairs share computed once and dropped after its last use."""

    def __init__(self, config: RunConfig, keys: dict[str, str], prompts: dict[str, str], kind: str, seed: int) -> None:
        self.config, self.kind, self.seed = config, kind, seed
        self.dataset = dataset_of(config)
        self.spaces = {name: store().open(key, name, verify=False) for name, key in keys.items()}
        self.prompts = {name: store().open(key, name, verify=False) for name, key in prompts.items()}
        self._anchors: dict[tuple[str, str], Anchors] = {}
        self._uses: Counter[tuple[str, str]] = Counter()

    def join(self, source: str, target: str) -> tuple[Pair, Split, str]:
        """The pair on its common items in the data set's order, its split, and a digest of those items."""
        try:
            pair = Pair.join(self.spaces[source], self.spaces[target])
        except ValueError as error:
            raise UserError(str(error)) from None
        split = _split_of(self.config, self.dataset, list(pair.keys), self.kind, self.seed)
        return pair, split, hashlib.sha256("\0".join(pair.keys).encode()).hexdigest()

    def plan(self, pairs: list[tuple[str, str]]) -> None:
        """Count how often each space's anchors will be wanted."""
        for pair in pairs:
            digest = self.join(*pair)[2]
            self._uses.update((name, digest) for name in pair)

    def evaluation(self, source: str, target: str) -> tuple[Evaluation, Pair]:
        pair, split, digest = self.join(source, target)
        Xa, Ya = pair.take(split.anchors)
        sides = []
        for name, vectors in ((source, Xa), (target, Ya)):
            sides.append(self._anchors.setdefault((name, digest), Anchors(vectors, split.folds)))
            self._uses[name, digest] -= 1
            if self._uses[name, digest] <= 0:
                del self._anchors[name, digest]
        tasks = self._tasks(pair, source, target)
        return Evaluation(sides[0], sides[1], *pair.take(split.held_out), split, tasks), pair

    def _tasks(self, pair: Pair, source: str, target: str) -> Tasks:
        if self.dataset.labels is None:
            return Tasks()
        of_item = dict(zip(self.dataset.keys, self.dataset.labels, strict=True))
        if not all(key in of_item for key in pair.keys):
            return Tasks()
        labels = [of_item[key] for key in pair.keys]
        image_target = modality(self.config, target) == "image"
        tasks: dict[str, Any] = {"labels": labels, "stitch": self.config.stitching and image_target}
        if target in self.prompts and modality(self.config, source) == "image":
            space = self.prompts[target]
            prompts = prompts_of(self.config)
            assert self.config.zero_shot is not None
            reads = {v: k for k, v in self.config.zero_shot.class_names.items()}
            of_prompt = dict(zip(prompts.keys, prompts.labels, strict=True))
            tasks |= {
                "prompts": space.take(np.arange(len(space))),
                "prompt_labels": [reads.get(of_prompt[key], of_prompt[key]) for key in space.keys],
            }
        if self.config.pretrained_heads and image_target:
            heads = [encoder_of(self.config.spaces[name]) for name in (target, source)]
            if isinstance(heads[0], HasHead):
                tasks["pretrained_head"] = _head(self.config, target)
            if isinstance(heads[0], HasHead) and isinstance(heads[1], HasHead):
                tasks["source_head"] = _head(self.config, source)
        return Tasks(**tasks)


def _head(config: RunConfig, name: str) -> LinearHead:
    encoder = encoder_of(config.spaces[name])
    assert isinstance(encoder, HasHead)
    return LinearHead(*encoder.head())


def candidates(config: RunConfig) -> list[tuple[str, str]]:
    """The image-to-text pairs that can become the champion: both encoders can travel, and no control."""
    if config.champion is None or config.zero_shot is None:
        return []
    found = []
    for source, target in config.pairs:
        sides = [config.spaces[name] for name in (source, target)]
        if any(side.control or side.encoder == "precomputed" for side in sides):
            continue
        made = [encoder_of(side) for side in sides]
        if isinstance(made[0], ExportableImage) and isinstance(made[1], ExportableText):
            found.append((source, target))
    return found


def fit(config: RunConfig, source: str, target: str, keys: dict[str, str]) -> str:
    """Fit a pair's maps on the anchors of the first split and judge them there by cross-validation; keeps the maps.

    Gives the address of {map label: cross-validated recall at 10}; the maps lie beside it, see `map_folder`.
    """
    kind, seed = config.splits.all[0]
    dataset = dataset_of(config)
    maps = [m for m in config.maps_for(source, target) if m.make().paired and m.label == m.map]
    key = address(
        {
            "step": "fit", "spaces": [keys[source], keys[target]], "maps": [m.model_dump() for m in maps],
            "splits": [kind, seed, config.splits.held_out, config.splits.folds], "data": _data_digest(dataset),
        }
    )  # fmt: skip
    results = ResultStore()
    if results.get(key) is None:
        bench = Workbench(config, {name: keys[name] for name in (source, target)}, {}, kind, seed)
        evaluation, _ = bench.evaluation(source, target)
        scores = {}
        for m in maps:
            fitted = _named(evaluation.fit, m, source, target)
            scores[m.label] = evaluation.cross_validate(fitted)
            fitted.save(map_folder(key, m.label))
        results.put(key, {"cross_validated": scores})
    return key


def map_folder(key: str, label: str) -> Path:
    """Where a fitted map of this address lies."""
    return ResultStore().path(key, "") / label.replace("/", "_")


def _named(fit: Callable[[Any], Any], m: Any, source: str, target: str) -> Any:
    """Fit, and say of a failure which map and pair it was."""
    try:
        return fit(m.make())
    except ValueError as error:
        raise UserError(f"{m.label} cannot be fitted on {source} -> {target}: {one_line(error)}") from None


def _data_digest(dataset: Dataset) -> str:
    parts = (dataset.keys, dataset.labels or (), dataset.groups or ())
    return hashlib.sha256("\1".join("\0".join(part) for part in parts).encode()).hexdigest()


def evaluation_keys(
    config: RunConfig, kind: str, seed: int, keys: dict[str, str], prompts: dict[str, str]
) -> dict[tuple[str, str], str]:
    """The address of every pair's outcomes on one split."""
    dataset = dataset_of(config)
    return {
        (source, target): address(
            {
                "step": "evaluate", "spaces": [keys[source], keys[target]], "prompts": prompts.get(target),
                "maps": [m.model_dump(exclude={"pairs"}) for m in config.maps_for(source, target)],
                "splits": [kind, seed, config.splits.held_out, config.splits.folds], "shuffled": _shuffles(config, kind, seed),
                "data": _data_digest(dataset), "stitching": config.stitching, "heads": config.pretrained_heads,
                "zero_shot": config.zero_shot and config.zero_shot.model_dump(),
            }
        )
        for source, target in config.pairs
    }  # fmt: skip


def _shuffles(config: RunConfig, kind: str, seed: int) -> bool:
    return (kind, seed) == config.splits.all[0]


def evaluate(
    config: RunConfig, kind: str, seed: int, keys: dict[str, str], prompts: dict[str, str], progress: Progress
) -> dict[str, str]:
    """Fit and judge every map of every pair on one split; gives the address of each pair's outcomes.

    Pairs that are kept already are not computed again. The shuffled baseline is fitted on the first split alone.
    """
    results = ResultStore()
    wanted = evaluation_keys(config, kind, seed, keys, prompts)
    missing = [pair for pair, key in wanted.items() if results.get(key) is None]
    progress(len(wanted) - len(missing))
    if missing:
        bench = Workbench(config, keys, prompts, kind, seed)
        bench.plan(missing)
        for source, target in missing:
            start = time.perf_counter()
            content, arrays = _outcomes(config, bench, source, target)
            content["seconds"] = time.perf_counter() - start
            results.put(wanted[source, target], content, arrays)
            progress(1)
    return {f"{source} -> {target}": key for (source, target), key in wanted.items()}


def _outcomes(
    config: RunConfig, bench: Workbench, source: str, target: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    evaluation, pair = bench.evaluation(source, target)
    references = evaluation.references()
    identity_ = evaluation.judge(evaluation.fit(Identity()))
    baselines = {name: {"/".join(k): v for k, v in values.items()} for name, values in references.items()}
    baselines["identity"] = {"/".join(k): float(getattr(np, how)(v)) for k, (v, how) in identity_.items()}
    arrays: dict[str, np.ndarray] = {}
    statistics: dict[str, str] = {}
    reports, shuffled = {}, {}
    for m in config.maps_for(source, target):
        fitted = _named(evaluation.fit, m, source, target)
        reports[m.label] = fitted.report_
        for (task, metric), (values, how) in evaluation.judge(fitted).items():
            arrays[f"{m.label}\t{task}\t{metric}"] = values.astype(np.float32)
            statistics[f"{task}/{metric}"] = how
        if fitted.paired and _shuffles(config, bench.kind, bench.seed):
            judged = evaluation.judge(evaluation.fit_shuffled(fitted)).items()
            shuffled[m.label] = {"/".join(k): float(getattr(np, how)(v)) for k, (v, how) in judged}
    held_out = [pair.keys[row] for row in evaluation.split.held_out]
    units = held_out
    if bench.kind == "group" and bench.dataset.groups is not None:
        of_item = dict(zip(bench.dataset.keys, bench.dataset.groups, strict=True))
        units = [of_item[key] for key in held_out]
    sizes = {"anchors": len(evaluation.split.anchors), "held_out": len(held_out)}
    content = {
        "baselines": baselines, "shuffled": shuffled, "statistics": statistics, "reports": reports,
        "items": held_out, "units": units, "order": list(arrays), **sizes,
    }  # fmt: skip
    return content, arrays


def score(config: RunConfig, kind: str, addresses: list[dict[str, str]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Pool the seeds of one kind of split: all scores, and of each pair its diagnostics and seconds."""
    results = ResultStore()
    scores: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    for source, target in config.pairs:
        kept = [results.get(seed[f"{source} -> {target}"]) for seed in addresses]
        if any(one is None for one in kept):
            raise UserError(f"the results of {source} -> {target} were removed while the run used them: run again")
        contents = [one[0] for one in kept if one is not None]
        outcomes = [
            {
                tuple(key.split("\t")): (one[1][key], contents[0]["statistics"]["/".join(key.split("\t")[1:])])
                for key in contents[0]["order"]
            }
            for one in kept
            if one is not None
        ]
        baselines: dict[Any, dict[str, float]] = {}
        for label, task, metric in outcomes[0]:
            at = f"{task}/{metric}"
            found = {
                name: float(np.mean([content["baselines"][name][at] for content in contents]))
                for name in ("identity", "native", "chance")
                if at in contents[0]["baselines"][name]
            }
            if label in contents[0]["shuffled"] and at in contents[0]["shuffled"][label]:
                found["shuffled"] = contents[0]["shuffled"][label][at]
            baselines[label, task, metric] = found
        pooled, _ = pool(
            {"source": source, "target": target, "split": kind}, outcomes, [content["units"] for content in contents],
            baselines, unit="items" if kind == "item" else "groups",
        )  # fmt: skip
        scores += [one.as_dict() for one in pooled]
        details[f"{source} -> {target}"] = {
            "seconds": sum(content["seconds"] for content in contents),
            "reports": contents[0]["reports"],
            "anchors": contents[0]["anchors"],
            "held_out": contents[0]["held_out"],
        }
    return scores, details


def compare(config: RunConfig, keys: dict[str, str]) -> str:
    """Similarity of all spaces on their common items; gives the result's address."""
    key = address({"step": "compare", "spaces": {name: keys[name] for name in config.spaces}})
    results = ResultStore()
    if results.get(key) is None:
        spaces = {name: store().open(keys[name], name, verify=False) for name in config.spaces}
        first, *others = spaces.values()
        common = [item for item in first.keys if all(item in other.position for other in others)]
        if len(common) < 4:
            return results.put(key, {"spaces": [], "items": len(common)})
        rows = {name: space.take(np.array([space.position[item] for item in common])) for name, space in spaces.items()}
        matrices = similarity_matrices(rows)
        content = {name: matrix.round(6).tolist() for name, matrix in matrices.items()}
        chance = min(10, len(common) - 1) / (len(common) - 1)
        results.put(key, {"spaces": list(spaces), "items": len(common), "mutual_knn_chance": chance, **content})
    return key


# --- record


def summarise(config: RunConfig, run: dict[str, Any], addresses: dict[str, Any]) -> None:
    """Complete a run's record from the kept results, and keep it."""
    keys, dataset = addresses["keys"], dataset_of(config)
    scores: list[dict[str, Any]] = []
    pairs: dict[str, dict[str, Any]] = {}
    splits: dict[tuple[str, int], dict[str, Any]] = {}
    for kind in config.splits.seeds:
        of_kind = [(seed, found) for one, seed, found in addresses["evaluate"] if one == kind]
        made, details = score(config, kind, [found for _, found in of_kind])
        scores += made
        for name, detail in details.items():
            source, target = name.split(" -> ")
            pair = pairs.setdefault(name, {"source": source, "target": target, "seconds": 0.0, "reports": {}})
            pair["seconds"] += detail["seconds"]
            pair["reports"][kind] = detail["reports"]
        first = next(iter(details.values()))
        for seed, _ in of_kind:
            sizes = {"anchors": first["anchors"], "held_out": first["held_out"]}
            splits[kind, seed] = {"kind": kind, "seed": seed, **sizes}
    best = champion(addresses["fit"])
    compared = ResultStore().get(addresses["compare"])
    spaces = describe_spaces(config, keys)
    run |= {
        "versions": versions(),
        "dataset": {
            "name": dataset.name,
            "items": len(dataset.keys),
            "classes": len(set(dataset.labels or ())),
            "groups": len(set(dataset.groups or ())),
        },
        "splits": list(splits.values()),
        "spaces": spaces,
        "pairs": list(pairs.values()),
        "scores": scores,
        "similarity": compared[0] if compared and compared[0]["spaces"] else None,
        "projection": projection(config, best, keys) if best else None,
        "champion": best,
        "addresses": addresses,
        "notes": notes(config, spaces),
    }
    save_run(run)


def notes(config: RunConfig, spaces: list[dict[str, Any]]) -> list[str]:
    """What a reader must know besides the numbers."""
    found = []
    for space in spaces:
        if space["skipped"]:
            found.append(f"{space['name']} left out {len(space['skipped'])} items that it could not embed")
        encoder = encoder_of(config.spaces[space["name"]])
        if isinstance(encoder, FromHub) and (newer := newer_revision(encoder)):
            found.append(f"{space['name']}: the hub has a newer revision, {newer[:12]}, than the pinned one")
    return found


def record_run(config: RunConfig, run_id: str) -> str:
    """Send a kept run to MLflow; gives the parent run's id."""
    run = load_run(run_id)
    return record(run, tracking_uri=config.mlflow.tracking_uri, experiment=config.mlflow.experiment)


def register_champion(config: RunConfig, run_id: str, parent: str) -> str | None:
    """Export the run's champion and register it with the alias @champion; gives its URI."""
    run = load_run(run_id)
    best = run["champion"]
    if best is None or config.champion is None or config.zero_shot is None:
        return None
    if best["uri"] is None:
        image, text = (encoder_of(config.spaces[best[side]]) for side in ("source", "target"))
        assert not isinstance(image, Precomputed)
        assert not isinstance(text, Precomputed)
        mine = [
            {key: one[key] for key in ("split", "task", "metric", "value", "low", "high", "n", "unit", "baselines")}
            for one in run["scores"]
            if all(one[key] == best[key] for key in ("source", "target", "map"))
        ]
        card = {
            "run": run_id,
            "data": run["dataset"]["name"],
            "fitted_on": f"the {run['splits'][0]['anchors']} anchors of the first split",
            "scores_of": "all split seeds; the artifact is the map of the first",
            "scores": mine,
        }
        prompts = prompts_of(config)
        folder = runs_folder() / run_id / "champion"
        export(
            folder, image=image, text=text, map=load_map(map_folder(best["fit"], best["map"])),
            labels=list(dict.fromkeys(prompts.labels)), templates=list(config.zero_shot.templates), card=card,
        )  # fmt: skip
        tags = {"suture.run": run_id, "suture.map": best["map"], "suture.pair": f"{best['source']} -> {best['target']}"}
        uri = config.mlflow.tracking_uri or default_tracking_uri()
        log_model(folder, tracking_uri=uri, run_id=parent, registered_name=config.champion.name, tags=tags)
        best["uri"] = f"models:/{config.champion.name}@champion"
        save_run(run)
    return str(best["uri"])


def report_run(config: RunConfig, run_id: str, parent: str | None) -> str:
    """Draw the pictures and the HTML report of a kept run, and add them to its MLflow run; gives the report's path."""
    run = load_run(run_id)
    folder = runs_folder() / run_id
    page = report.html(run, folder)
    files = [(picture, "pictures") for picture in sorted(folder.glob("*.png"))]
    if parent is not None:
        add_artifacts(parent, [*files, (page, "")], tracking_uri=config.mlflow.tracking_uri)
    return str(page)


def finish(run_id: str, timings: dict[str, float], parent: str | None) -> None:
    """Keep the final timings, which the flow knows last."""
    run = load_run(run_id)
    run["timings"], run["seconds"], run["mlflow_run"] = timings, timings["total"], parent
    save_run(run)


def recorded(run_id: str, parent: str) -> None:
    """Keep under which id MLflow has the run, after it was sent later."""
    run = load_run(run_id)
    run["mlflow_run"] = parent
    save_run(run)


def champion(fits: dict[str, str]) -> dict[str, Any] | None:
    """The candidate that cross-validation on the anchors prefers, with all candidates."""
    ranked = []
    for pair, key in fits.items():
        kept = ResultStore().get(key)
        source, target = pair.split(" -> ")
        if kept is not None:
            ranked += [
                {"source": source, "target": target, "map": label, "value": value, "fit": key}
                for label, value in kept[0]["cross_validated"].items()
            ]
    if not ranked:
        return None
    ranked.sort(key=lambda one: -one["value"])
    return {**ranked[0], "metric": "recall_at_10", "candidates": ranked, "uri": None}


def projection(config: RunConfig, best: dict[str, Any], keys: dict[str, str]) -> dict[str, Any] | None:
    """Held-out items of a pair in two dimensions, before and after the map, by principal components."""
    bench = Workbench(
        config, {name: keys[name] for name in (best["source"], best["target"])}, {},
        *config.splits.all[0],
    )  # fmt: skip
    evaluation, _ = bench.evaluation(best["source"], best["target"])
    if evaluation.tasks.labels is None:
        return None
    fitted = load_map(map_folder(best["fit"], best["map"]))
    plain = Identity().fit(evaluation.source.vectors, evaluation.target.vectors)
    labels = [evaluation.tasks.labels[row] for row in evaluation.split.held_out]
    views = {}
    for name, model in (("before", plain), ("after", fitted)):
        X, Y = model.source_to_shared(evaluation.held_out_source), model.target_to_shared(evaluation.held_out_target)
        # Cosine is what compares them, so lengths must not decide the picture.
        X, Y = (Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12) for Z in (X, Y))
        both = np.concatenate([X, Y])
        _, _, axes = np.linalg.svd(both - both.mean(0), full_matrices=False)
        flat = (both - both.mean(0)) @ axes[:2].T
        views[name] = {"source": flat[: len(X)].round(4).tolist(), "target": flat[len(X) :].round(4).tolist()}
    return {"source": best["source"], "target": best["target"], "map": best["map"], "labels": labels, **views}


def describe_spaces(config: RunConfig, keys: dict[str, str]) -> list[dict[str, Any]]:
    """Provenance of every space, for the record."""
    described = []
    for name, space in config.spaces.items():
        manifest = store().manifest(keys[name])
        known = manifest["identity"]
        described.append(
            {
                "name": name, "encoder": known["encoder"], "modality": manifest["details"]["modality"],
                "column": known["column"], "dimension": manifest["dimension"], "rows": manifest["rows"],
                "skipped": manifest["skipped"], "licence": manifest["details"]["licence"],
                "preprocessing": known["preprocessing"], "backend": known["backend"],
                "weights": known["weights"], "data": known["data"], "key": keys[name], "control": space.control,
            }
        )  # fmt: skip
    return described


def versions() -> dict[str, str]:
    """Of everything that numbers may depend on."""
    names = ("suture", "numpy", "scipy", "scikit-learn", "torch", "onnxruntime", "POT", "mlflow", "prefect")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@contextmanager
def timed(timings: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds inside to a phase."""
    start = time.perf_counter()
    try:
        yield
    finally:
        timings[phase] = timings.get(phase, 0.0) + time.perf_counter() - start


def check_disk(needed: int) -> None:
    """Raise `UserError` before the work where the disk cannot take what it will write."""
    place = home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(f"{home()} has {free / 1e6:,.0f} MB free, and this run needs about {needed / 1e6:,.0f} MB")
    if not os.access(place, os.W_OK):
        raise UserError(f"{home()} cannot be written: set SUTURE_HOME to a folder of yours")
