"""The command line: `suture COMMAND`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from flows import environment

environment.prepare()

from registry.errors import UserError, unknown  # noqa: E402

USER_ERROR, UNAVAILABLE, INTERRUPTED = 2, 3, 130
"""Exit codes: the message says what to mend; results are kept but MLflow did not answer; stopped by Ctrl-C."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Stitch pretrained models together: align embedding spaces, score the result honestly, ship the stitched model.",
    epilog="Exit codes: 0 done, 2 something to mend (one line says what), 3 MLflow did not answer (results are kept), "
    "130 stopped. Everything is kept under SUTURE_HOME (default ~/.suture).",
)
out, err = Console(), Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def main() -> None:
    """Run a command; an error that the user can mend is one line, without a traceback."""
    try:
        app()
    except UserError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(getattr(error, "exit_code", USER_ERROR))
    except OSError as error:
        import errno

        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG):
            raise
        err.print(
            f"error: {error.strerror} ({error.filename or 'while writing'}): what is finished is kept; "
            "free some space or set SUTURE_HOME to another disk, and run again",
            style="red", markup=False, soft_wrap=True,
        )  # fmt: skip
        sys.exit(USER_ERROR)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=1))


# --- run and record


@app.command(epilog="Example: suture run configs/quickstart.yaml --dry-run")
def run(
    config: Annotated[Path | None, typer.Argument(help="A YAML file; the quickstart where none is given.")] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Say what would be computed, how long and how large, and stop.")
    ] = False,
    json_: Json = False,
) -> None:
    """Embed, fit, evaluate, and record a run; what is stored already is not computed again."""
    from flows.config import load_config

    loaded = load_config(config)
    if dry_run:
        _dry_run(loaded, json_)
        return
    environment.make_home()
    from prefect.exceptions import TerminationSignal

    from flows.align_spaces import WATCH, Cancelled, align_spaces, new_run
    from registry.record import warm_up

    # Prefect's server takes seconds to start in its own process; MLflow gets ready in the meantime.
    threading.Thread(target=warm_up, args=(loaded.mlflow.tracking_uri,), daemon=True).start()

    def stop(*_: Any) -> None:
        if WATCH.stop.is_set():
            raise KeyboardInterrupt
        WATCH.stop.set()
        err.print("stopping after the current batch; what is finished is kept (again to stop at once)", soft_wrap=True)

    started = new_run(loaded)
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Progress(*columns, console=err, disable=json_ or not err.is_terminal) as progress:
            bars: dict[str, Any] = {}

            def total(phase: str, number: int) -> None:
                bars[phase] = progress.add_task(phase, total=number)

            WATCH.total = total
            WATCH.advance = lambda phase, steps: progress.advance(bars[phase], steps) if phase in bars else None
            run_id = align_spaces(loaded, started)
    except (Cancelled, KeyboardInterrupt, TerminationSignal) as error:
        stopped = UserError(str(error) or "stopped: what is finished is kept, run again to go on")
        stopped.exit_code = INTERRUPTED  # type: ignore[attr-defined]
        raise stopped from None
    finally:
        WATCH.stop.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)
    _show_run(run_id, json_)


def _dry_run(config: Any, json_: bool) -> None:
    from flows import plan

    planned = plan.plan(config)
    if json_:
        _print_json(planned)
        return
    table = Table("space", "encoder", "items", "state", "seconds", "MB", title=f"{config.name}: what would be embedded")
    for space in planned["spaces"]:
        table.add_row(
            space["name"], space["encoder"], f"{space['items']:,}", "stored" if space["stored"] else "to do",
            "" if space["stored"] else f"{space['seconds']:.0f}", f"{space['bytes'] / 1e6:.1f}",
        )  # fmt: skip
    out.print(table)
    done, pairs = planned["evaluations"]["stored"], planned["evaluations"]["all"]
    out.print(f"pairs x splits to evaluate: {pairs - done} of {pairs} ({done} stored)")
    out.print(f"estimate: {planned['seconds']:.0f} s, {planned['bytes'] / 1e6:.0f} MB to write ({planned['basis']})")


def _show_run(run_id: str, json_: bool) -> None:
    from registry.results import load_run, runs_folder

    made = load_run(run_id)
    if json_:
        _print_json(
            {"run": run_id, "seconds": made["seconds"], "timings": made["timings"], "champion": made["champion"]}
        )
        return
    _score_table(made, None, None, False)
    best = made["champion"]
    if best and best["uri"]:
        out.print(
            f"champion by cross-validation on the anchors: {best['source']} -> {best['target']} by {best['map']} "
            f"({best['metric']} {best['value']:.3f}), registered as [bold]{best['uri']}[/bold]"
        )
        if best.get("promotion"):
            out.print(best["promotion"], markup=False, highlight=False, soft_wrap=True)
    out.print(f"report: {runs_folder() / run_id / 'report.html'}", soft_wrap=True)
    out.print(f"run {run_id} in {made['seconds']:.0f} s. Next: suture ui, or suture show {run_id} --all")


@app.command(epilog="Example: suture record latest")
def record(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of it, or 'latest'.")],
    tracking_uri: Annotated[str | None, typer.Option(help="Another MLflow than the configuration's.")] = None,
    json_: Json = False,
) -> None:
    """Send a kept run to MLflow: after a server did not answer, or to another one."""
    from flows import recording
    from flows.config import RunConfig
    from registry.results import load_run

    kept = load_run(run)
    config = RunConfig.model_validate(kept["config"])
    if tracking_uri is not None:
        config = config.model_copy(update={"mlflow": config.mlflow.model_copy(update={"tracking_uri": tracking_uri})})
    parent = recording.record_run(config, kept["id"])
    uri = recording.register_champion(config, kept["id"], parent)
    recording.report_run(config, kept["id"], parent)
    recording.recorded(kept["id"], parent)
    if json_:
        _print_json({"run": kept["id"], "mlflow_run": parent, "champion": uri})
    else:
        out.print(f"recorded {kept['id']} as MLflow run {parent}" + (f", champion {uri}" if uri else ""))


# --- looking


@app.command("list", epilog="Example: suture list encoders")
def list_(
    what: Annotated[str, typer.Argument(help="encoders, datasets, maps, measures, health, rules, runs or models")],
    json_: Json = False,
) -> None:
    """List what there is: encoders, datasets, maps, measures (of similarity), health (of one space), rules, runs or models."""
    listings = {
        "encoders": _encoders,
        "datasets": _datasets,
        "maps": _maps,
        "measures": _measures,
        "health": _health,
        "rules": _rules,
        "runs": _runs,
        "models": _models,
    }
    if what not in listings:
        raise unknown("list", what, listings)
    rows = listings[what]()
    if json_:
        _print_json(rows)
        return
    if not rows:
        out.print(f"no {what} yet")
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(escape(str(value)) if value is not None else "" for value in row.values()))
    _wide(table, 170)


def _encoders() -> list[dict[str, Any]]:
    from registry.encoders import CATALOG

    return [
        {
            "name": entry.name, "modality": entry.modality or "by option", "dimension": entry.dimension,
            "licence": entry.licence, "installed": "yes" if entry.missing() is None else f"needs suture[{entry.extra}]",
            "description": entry.description,
        }
        for entry in CATALOG.values()
    ]  # fmt: skip


def _datasets() -> list[dict[str, Any]]:
    from registry.datasets import CATALOG, options

    return [
        {"name": entry.name, "description": entry.description, "options": ", ".join(options(entry.name))}
        for entry in CATALOG.values()
    ]


def _maps() -> list[dict[str, Any]]:
    from align import MAPS

    return [
        {
            "name": name, "pairs": "needed" if cls.paired else "not needed",
            "parameters": ", ".join(sorted(cls().get_params())), "description": (cls.__doc__ or "").split("\n")[0],
        }
        for name, cls in MAPS.items()
    ]  # fmt: skip


def _first_line(described: Any) -> str:
    return (described.__doc__ or "").split("\n")[0]


def _measures() -> list[dict[str, Any]]:
    from align.measures import MEASURES

    return [
        {
            "name": name, "range": f"{cls.range[0]:g} to {cls.range[1]:g}",
            "closer": "larger" if cls.larger_is_closer else "smaller", "symmetric": "yes" if cls.symmetric else "no",
            "invariant to": ", ".join(sorted(cls.invariances)), "description": _first_line(cls),
        }
        for name, cls in MEASURES.items()
    ]  # fmt: skip


def _health() -> list[dict[str, Any]]:
    from align.measures.health import HEALTH

    return [
        {
            "name": name, "range": f"{one.range[0]:g} to {one.range[1]:g}", "healthy": one.healthy,
            "invariant to": ", ".join(sorted(one.invariances)), "description": one.summary,
        }
        for name, one in HEALTH.items()
    ]  # fmt: skip


def _rules() -> list[dict[str, Any]]:
    from align.rules import RULES

    return [
        {
            "name": name, "knows other queries": "from the anchors" if cls.uses_references else "no",
            "description": _first_line(cls),
        }
        for name, cls in RULES.items()
    ]  # fmt: skip


def _runs() -> list[dict[str, Any]]:
    from registry.results import load_run, run_ids

    rows = []
    for run_id in run_ids():
        kept = load_run(run_id)
        best = kept["champion"]
        rows.append(
            {
                "run": run_id, "started": kept["started"], "seconds": round(kept.get("seconds", 0)),
                "pairs": len(kept["pairs"]), "recorded": "yes" if kept.get("mlflow_run") else "no",
                "champion": f"{best['source']} -> {best['target']} by {best['map']}" if best else None,
            }
        )  # fmt: skip
    return rows


@app.command(epilog="Example: suture show latest --task zero_shot --split group")
def show(
    run: Annotated[
        str, typer.Argument(help="A run's id, the beginning of it, or 'latest'; or models:/NAME@ALIAS.")
    ] = "latest",
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this kind of split: item or group.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every metric, not only each pair's headline.")] = False,
    json_: Json = False,
) -> None:
    """Show a run's scores with their intervals and baselines, or a registered model's lineage and evidence."""
    if run.startswith("models:/"):
        _show_model(run, json_)
        return
    from registry.results import load_run

    kept = load_run(run)
    for given, key in ((task, "task"), (split, "split")):
        valid = {score[key] for score in kept["scores"]}
        if given is not None and given not in valid:
            raise unknown(key, given, valid)
    if json_:
        _print_json(
            [
                s
                for s in kept["scores"]
                if (task is None or s["task"] == task) and (split is None or s["split"] == split)
            ]
        )
        return
    _score_table(kept, task, split, all_)


def _score_table(run: dict[str, Any], task: str | None, split: str | None, every: bool) -> None:
    scores = [s for s in run["scores"] if task in (None, s["task"]) and split in (None, s["split"])]
    if every or task or split:
        _long_table(run, scores)
    else:
        _short_table(run, scores)


def _digits(score: dict[str, Any], value: float) -> str:
    return f"{value:.1f}" if score["metric"] == "median_rank" else f"{value:.3f}"


def _short_table(run: dict[str, Any], scores: list[dict[str, Any]]) -> None:
    """One row a pair and map: its headline retrieval and its classification, by split, and what they are held against."""
    modality = {space["name"]: space["modality"] for space in run["spaces"]}
    controls = {space["name"] for space in run["spaces"] if space["control"]}
    kinds = list(dict.fromkeys(split["kind"] for split in run["splits"]))
    found: dict[tuple[str, str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for score in scores:
        across = modality[score["source"]] != modality[score["target"]]
        if score["task"] == "retrieval" and score["metric"] != ("recall_at_10" if across else "recall_at_1"):
            continue
        if score["rule"] not in ("cosine", "head") or score["task"] == "retrieval_back":
            continue
        task = "classes" if score["task"] in ("zero_shot", "stitching") else score["task"]
        found.setdefault((score["source"], score["target"], score["map"]), {})[task, score["split"]] = score
    table = Table(title=f"run {run['id']}: value [95 % interval] on held-out items", title_justify="left")
    for column in ("pair", "map", *(f"retrieval, {kind} split" for kind in kinds), "shuffled"):
        table.add_column(column)
    for column in (*(f"classes, {kind} split" for kind in kinds), "shuffled", "native"):
        table.add_column(column)
    last = None
    for (source, target, label), of_task in found.items():
        pair = f"{source} -> {target}" + (" (control)" if {source, target} & controls else "")
        if last is not None and pair != last:
            table.add_section()
        cells = []
        for task, baselines in (("retrieval", ("shuffled",)), ("classes", ("shuffled", "native"))):
            for kind in kinds:
                cells.append(_cell(of_task.get((task, kind))))
            first = of_task.get((task, kinds[0]))
            cells += [f"{first['baselines'][b]:.3f}" if first and b in first["baselines"] else "" for b in baselines]
        table.add_row(pair if pair != last else "", label, *(escape(cell) for cell in cells))
        last = pair
    _wide(table, 190)
    out.print(
        "R@k: the true partner is among the k nearest. classes: zero-shot by prompts (text targets), or a head trained "
        "in the target space and fed with mapped vectors. shuffled: the same map on wrong pairs (first split). native: the target's own.",
        style="dim",
    )


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    name = {"recall_at_1": "R@1 ", "recall_at_10": "R@10 "}.get(score["metric"], "")
    return f"{name}{score['value']:.3f} [{score['low']:.2f}, {score['high']:.2f}]"


def _long_table(run: dict[str, Any], scores: list[dict[str, Any]]) -> None:
    """One row a score, with every baseline."""
    baselines = ("identity", "shuffled", "native", "chance")
    controls = {space["name"] for space in run["spaces"] if space["control"]}
    table = Table(
        "pair",
        "map",
        "rule",
        "split",
        "task",
        "metric",
        "value",
        "95 % interval",
        *baselines,
        "p",
        "q",
        "n",
        title=f"run {run['id']}",
    )
    last = None
    for score in scores:
        pair = f"{score['source']} -> {score['target']}"
        pair += " (control)" if {score["source"], score["target"]} & controls else ""
        if pair != last and last is not None:
            table.add_section()
        table.add_row(
            pair if pair != last else "", score["map"], score["rule"], score["split"], score["task"], score["metric"],
            _digits(score, score["value"]), f"{_digits(score, score['low'])} - {_digits(score, score['high'])}",
            *(_digits(score, score["baselines"][name]) if name in score["baselines"] else "" for name in baselines),
            *("" if score[name] is None else f"{score[name]:.3f}" for name in ("p_value", "q_value")),
            f"{score['n']} {score['unit']}",
        )  # fmt: skip
        last = pair
    _wide(table, 170)


def _wide(table: Table, width: int) -> None:
    """Print a table as wide as it needs where nobody's terminal would wrap it."""
    (out if out.is_terminal else Console(width=width)).print(table)


@app.command(epilog="Example: suture ui --port 5001")
def ui(
    port: Annotated[int, typer.Option(help="Where the dashboard listens, on this machine only.")] = 5000,
    config: Annotated[Path | None, typer.Option(help="A configuration that names another MLflow.")] = None,
) -> None:
    """Open MLflow's dashboard on the store where runs are recorded."""
    from flows.config import load_config
    from registry.home import home
    from registry.record import check_tracking, default_tracking_uri

    uri = (load_config(config).mlflow.tracking_uri if config else None) or default_tracking_uri()
    if uri.startswith(("http://", "https://")):
        check_tracking(uri)
        out.print(f"this configuration records at {uri}: open it in a browser")
        return
    if uri == default_tracking_uri() and not (home() / "mlflow" / "mlflow.db").exists():
        raise UserError("nothing is recorded yet: make a run with  suture run")
    err.print(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    artifacts = (home() / "mlflow" / "artifacts").as_uri()
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--default-artifact-root", artifacts,
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    os.execv(sys.executable, command)


# --- stitched models

Model = Annotated[
    str,
    typer.Argument(
        help="A run (its champion) or 'latest', models:/NAME@ALIAS, or an exported folder.", metavar="MODEL"
    ),
]
TrackingUri = Annotated[
    str | None, typer.Option("--tracking-uri", help="The MLflow that has the model, where not the default one.")
]


@app.command(epilog="Example: suture export models:/quickstart@champion model/ --format onnx")
def export(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="A new folder; a model that is there is replaced.", metavar="DIR")],
    format_: Annotated[str, typer.Option("--format", help="onnx (one file), folder or mlflow (a pyfunc).")] = "folder",
    tokens: Annotated[bool, typer.Option("--tokens", help="The ONNX file takes token ids instead of pixels.")] = False,
    tracking_uri: TrackingUri = None,
    json_: Json = False,
) -> None:
    """Write a stitched model for use elsewhere: nothing of this package is needed to run it."""
    from registry import promotion, stitched

    found = promotion.find(model, tracking_uri=tracking_uri)
    # Real pictures, where the run that made the model is kept: the ONNX file is held against it on them.
    images = _pictures(found) if format_ == "onnx" and not tokens else []
    stitched.write(found, folder, format_, tokens=tokens, images=images)  # type: ignore[arg-type]
    if json_:
        _print_json({"model": str(found), "format": format_, "folder": str(folder), "checked_on": len(images)})
        return
    start = {
        "onnx": f"cd {folder} && python example.py {'TEXT' if tokens else 'PICTURE'}",
        "folder": f"suture predict {folder} PICTURE, or registry.stitched.load('{folder}')",
        "mlflow": f"mlflow models serve -m {folder} --env-manager local",
    }
    out.print(f"exported to {folder}. Next: {start[format_]}", soft_wrap=True, highlight=False)


def _pictures(folder: Path) -> list[bytes]:
    """Eight pictures of the data set that a stitched model was made with, where its run is kept here."""
    import io

    from flows.config import RunConfig
    from flows.steps import dataset_of
    from registry.results import load_run, run_ids

    try:
        run_id = json.loads((folder / "config.json").read_bytes())["card"]["run"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    if run_id not in run_ids():
        return []
    run = load_run(run_id)
    column = next(space["column"] for space in run["spaces"] if space["name"] == run["champion"]["source"])
    files = []
    try:
        dataset = dataset_of(RunConfig.model_validate(run["config"]))
        for row in range(0, len(dataset.keys), -(-len(dataset.keys) // 8)):
            file = io.BytesIO()
            dataset.read(column, row).save(file, "PNG")  # type: ignore[union-attr]
            files.append(file.getvalue())
    except UserError as error:
        err.print(f"checked on test patterns alone: {error}", style="yellow", soft_wrap=True)
    return files


@app.command(epilog='Example: suture predict latest photos/ --labels "a cat,a dog" --json')
def predict(
    model: Model,
    inputs: Annotated[
        list[Path], typer.Argument(help="Pictures, folders, .txt files (a text a line), or .parquet (image or text).")
    ],
    labels: Annotated[str | None, typer.Option(help="Class names, separated by commas; the stored ones else.")] = None,
    top_k: Annotated[int, typer.Option(help="How many classes to name.")] = 1,
    tracking_uri: TrackingUri = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Name the class of pictures and texts; what cannot be read is said so in its row."""
    from registry import promotion, stitched

    loaded = stitched.load(promotion.find(model, tracking_uri=tracking_uri))
    names = None if labels is None else [label.strip() for label in labels.split(",")]
    rows = stitched.predict(loaded, inputs, labels=names, top_k=top_k)
    bad = done = 0
    with Progress(console=err, disable=not err.is_terminal) as progress:
        bar = progress.add_task("predict", total=stitched.count_inputs(inputs) if err.is_terminal else None)
        for row in rows:
            bad, done = bad + ("error" in row), done + 1
            progress.advance(bar)
            if json_:
                print(json.dumps(row, ensure_ascii=False))
            elif "error" in row:
                print(f"{row['input']}\terror: {row['error']}")
            else:
                best = zip(row.get("labels", [row["label"]]), row.get("scores", [row["score"]]), strict=True)
                print(row["input"], *(f"{label}\t{score:.3f}" for label, score in best), sep="\t")
    if not done:
        raise UserError("there is no picture or text in what was given")
    if bad:
        err.print(f"{bad} of {done} could not be answered", style="yellow")
    if bad == done:
        sys.exit(USER_ERROR)


@app.command(epilog="Example: suture promote quickstart --margin 0.02")
def promote(
    name: Annotated[str, typer.Argument(help="A registered model, as in  suture list models.")],
    version: Annotated[str | None, typer.Option(help="The version to promote, where not @challenger.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="For a smaller model: not worse by this share of items is enough.")
    ] = None,
    level: Annotated[
        float, typer.Option(help="The chance that all tests of this model together ever promote one that is no better.")
    ] = 0.05,
    rollback: Annotated[bool, typer.Option("--rollback", help="Back to the champion before this one.")] = False,
    tracking_uri: TrackingUri = None,
    json_: Json = False,
) -> None:
    """Move @champion to a version that is better on the same held-out items, by a test; print the evidence."""
    from registry import promotion

    if rollback:
        back = promotion.rollback(name, tracking_uri=tracking_uri)
        if json_:
            _print_json(back)
        else:
            out.print(f"{name}@champion is version {back['version']} again, instead of {back['instead_of']}")
        return
    evidence = promotion.promote(name, version=version, margin=margin, level=level, tracking_uri=tracking_uri)
    if json_:
        _print_json(evidence)
    else:
        out.print(promotion.sentence(evidence), soft_wrap=True, markup=False)


@app.command(epilog="Example: suture serve models:/quickstart@champion --port 5002")
def serve(
    model: Model,
    port: Annotated[int, typer.Option(help="Where it listens.")] = 5002,
    host: Annotated[str, typer.Option(help="The address to listen on; this machine only by default.")] = "127.0.0.1",
    tracking_uri: TrackingUri = None,
) -> None:
    """Answer over HTTP by MLflow's scoring server: POST /invocations with base64 pictures in a column 'image'."""
    from registry import promotion, stitched

    server = stitched.server(promotion.find(model, tracking_uri=tracking_uri))
    import uvicorn

    err.print(f"serving {model} on http://{host}:{port}/invocations (Ctrl-C ends it)", soft_wrap=True)
    uvicorn.run(server, host=host, port=port, log_level="warning")


def _models() -> list[dict[str, Any]]:
    from registry import promotion

    return promotion.models()


def _show_model(model: str, json_: bool) -> None:
    from registry import promotion

    found = promotion.describe(model)
    if json_:
        _print_json(found)
        return
    aliases = "".join(f" @{alias}" for alias in found["aliases"])
    lines = [f"{found['model']} version {found['version']}{aliases}: {found['pair']} by {found['map']}"]
    lines += [f"run {found['run']}, MLflow run {found['mlflow_run']}"]
    lineage = found["lineage"]
    if "note" in lineage:
        lines.append(f"lineage: {lineage['note']}")
    else:
        lines.append(f"data: {lineage['data']['name']}, {lineage['data']['items']} items")
        lines += [
            f"{space['name']}: {space['encoder']} on {space['column']}, weights {space['weights'][:12]}, "
            f"data {space['data'][:12]}, {space['licence']}"
            for space in lineage["spaces"]
        ]
        lines.append("code: " + ", ".join(f"{name} {version}" for name, version in lineage["code"].items()))
    lines.append(f"evidence: {found['evidence'].get('decision', 'none: it was never tested')}")
    lines.append(
        f"tests of this model so far: {found['tests']}; earlier champions: {', '.join(found['history']) or '-'}"
    )
    lines.append("stale: " + ("; ".join(found["stale"]) or "no"))
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)


# --- on a user's own files


@app.command(epilog="Example: suture fit old.npy new.npy --map procrustes --param scale=true --out map/")
def fit(
    source: Annotated[Path, typer.Argument(help="Vectors: .npy, .npz, .safetensors or .parquet.")],
    target: Annotated[Path, typer.Argument(help="Vectors of the same items in the other space.")],
    out_: Annotated[Path, typer.Option("--out", "-o", help="The folder to save the map in.")],
    map_: Annotated[str, typer.Option("--map", help="One of  suture list maps.")] = "ridge",
    param: Annotated[
        list[str] | None, typer.Option(help="name=value, a constructor argument; may be repeated.")
    ] = None,
    json_: Json = False,
) -> None:
    """Fit a map between two files of vectors; rows are paired by their keys where both files have keys."""
    from registry import vectors

    fitted, used = vectors.fit_files(source, target, map_, _parameters(param or []))
    try:
        fitted.save(out_)
    except ValueError as error:
        raise UserError(str(error)) from None
    if json_:
        _print_json({"map": map_, "out": str(out_), "rows": used, "report": fitted.report_})
        return
    for warning in fitted.report_.get("warnings", []):
        err.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    facts = ", ".join(f"{k} {v:.4g}" for k, v in fitted.report_.items() if isinstance(v, int | float))
    out.print(f"{map_} fitted on {used:,} rows ({facts}), saved in {out_}", soft_wrap=True)


@app.command(epilog="Example: suture compare old.npy new.npy, or suture compare 20260101 latest")
def compare(
    first: Annotated[str, typer.Argument(help="A file of vectors, or a run.")],
    second: Annotated[str, typer.Argument(help="Vectors of the same items, or another run of the same pairs.")],
    measure: Annotated[list[str] | None, typer.Option(help="Of  suture list measures; may be repeated.")] = None,
    items: Annotated[int, typer.Option(min=4, help="Of more items than this as many are drawn.")] = 4000,
    json_: Json = False,
) -> None:
    """Say how alike two files of vectors are and how healthy each is; or which of two runs is better, score by score."""
    if not Path(first).exists() and not Path(second).exists():
        _compare_runs(first, second, json_)
        return
    from align.measures import MEASURES
    from align.measures import health as health_of
    from registry import compare as comparing

    for name in measure or ():
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
    paths = Path(first), Path(second)
    found = comparing.compare_files(*paths, measures=tuple(measure or comparing.MEASURES), items=items)
    if json_:
        _print_json(found)
        return
    drawn = "" if found["items"] == found["common"] else f" ({found['items']:,} drawn)"
    table = Table(
        *("similarity", "value", "95 % interval", "closer", "shuffled", "p", "q"),
        title=f"{first} and {second}: {found['common']:,} common items{drawn}", title_justify="left",
    )  # fmt: skip
    for one in found["similarity"]:
        for row, way in ((one, ""), (one["reverse"], ", backwards")):
            if row is None:
                continue
            table.add_row(
                row["measure"] + way, f"{row['value']:.3f}", f"{row['low']:.3f} - {row['high']:.3f}",
                "larger" if MEASURES[row["measure"]].larger_is_closer else "smaller", f"{row['null_mean']:.3f}",
                f"{row['p_value']:.3f}", f"{one['q_value']:.3f}",
            )  # fmt: skip
    out.print(table)
    table = Table("health", "healthy", *(path.name for path in paths))
    for name in comparing.HEALTH:
        cells = (found["health"][str(path)][name] for path in paths)
        texts = [f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" for cell in cells]
        table.add_row(name, health_of.HEALTH[name].healthy, *(escape(text) for text in texts))
    out.print(table)
    notes = [f"{one['measure']}: {note}" for one in found["similarity"] for note in one["warnings"]]
    notes += [
        f"{path}: {one['warning']}" for path, of in found["health"].items() for one in of.values() if one["warning"]
    ]
    for note in dict.fromkeys(notes):
        err.print(f"warning: {note}", style="yellow", markup=False, soft_wrap=True)


def _compare_runs(first: str, second: str, json_: bool) -> None:
    from registry.compare import compare_runs
    from registry.results import load_run

    runs = [load_run(name) for name in (first, second)]
    rows = compare_runs(*runs)
    if json_:
        _print_json(rows)
        return
    called = [row for row in rows if row["q_value"] < 0.05]
    table = Table(
        *("pair", "map", "rule", "split", "score", "first", "second", "gain [95 % interval]", "p", "q"),
        title=f"{runs[1]['id']} against {runs[0]['id']}: {len(rows)} scores of the same items", title_justify="left",
    )  # fmt: skip
    for row in called or rows[:10]:
        table.add_row(
            f"{row['source']} -> {row['target']}", row["map"], row["rule"], row["split"],
            f"{row['task']} {row['metric']}", f"{row['first']:.3f}", f"{row['second']:.3f}",
            escape(f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"),
            f"{row['p_value']:.4f}", f"{row['q_value']:.4f}",
        )  # fmt: skip
    _wide(table, 170)
    better = sum(row["difference"] > 0 for row in called)
    out.print(
        f"{better} better and {len(called) - better} worse at q < 0.05 of {len(rows)} scores"
        + ("" if called else "; the ten with the smallest p are shown")
    )


def _parameters(given: list[str]) -> dict[str, Any]:
    import yaml

    parameters = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--param takes name=value, got '{item}'")
        parameters[name.strip()] = yaml.safe_load(value)
    return parameters


@app.command(epilog="Example: suture translate map/ stored.npy --out translated.npy")
def translate(
    map_: Annotated[Path, typer.Argument(help="A folder that  suture fit  saved.", metavar="MAP")],
    vectors_: Annotated[Path, typer.Argument(help="Vectors of the source space.", metavar="VECTORS")],
    out_: Annotated[Path, typer.Option("--out", "-o", help="Where to write; the ending says the format.")],
    json_: Json = False,
) -> None:
    """Translate stored vectors into the target space, in blocks; keys are kept.

    Files are .npy, .npz, .safetensors, .parquet, .arrow or .feather, any into any. Stopped in the middle it goes on
    when it is started again.
    """
    from registry import vectors

    with Progress(console=err, disable=json_ or not err.is_terminal) as progress:
        bar = progress.add_task("translate", total=None)
        rows, dimension = vectors.translate_file(
            map_, vectors_, out_, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    if json_:
        _print_json({"rows": rows, "dimension": dimension, "out": str(out_)})
    else:
        out.print(f"{rows:,} vectors of {dimension} dimensions in {out_}", soft_wrap=True)


@app.command(epilog="Example: suture upgrade --old old.npy --new new.npy --labels classes.json --out maps/")
def upgrade(
    old: Annotated[str, typer.Option(help="The old model's vectors: a file, or with --data an encoder.")],
    new: Annotated[str, typer.Option(help="The new model's vectors of the same items, or an encoder.")],
    labels: Annotated[
        Path | None, typer.Option(help="Classes: .json (by key, or a list in the order of the rows) or .txt.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="One of  suture list datasets, embedded by both encoders.")] = None,
    column: Annotated[str | None, typer.Option(help="The column of --data to embed.")] = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", help="Only this candidate; may be repeated. By default six compete.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="The share of items that only report.")] = 0.3,
    out_: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to save both maps in.")] = None,
    json_: Json = False,
) -> None:
    """Replace an embedding model without re-indexing: fit maps both ways, and say what each keeps of a new index."""
    from registry import upgrade as upgrades

    if (data is None) != (column is None):
        raise UserError("--data and --column go together: which data set, and which column of it to embed")
    if out_ is not None and out_.exists() and not out_.is_dir():
        raise UserError(f"--out {out_} is a file: name a folder")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=json_ or not err.is_terminal) as progress:
        bar = progress.add_task("reading", total=None)
        options: dict[str, Any] = {
            "held_out": held_out,
            "candidates": map_ or upgrades.CANDIDATES,
            "progress": lambda what: progress.update(bar, description=what),
        }
        if data is not None and column is not None:
            if labels is not None:
                raise UserError("--labels are for files: a data set has its own")
            made = upgrades.upgrade_encoders(old, new, data, column, **options)
        else:
            classes = None if labels is None else upgrades.read_labels(labels)
            made = upgrades.upgrade_files(Path(old), Path(new), classes, **options)
    if out_ is not None:
        made.save(out_)
    if json_:
        _print_json(made.report)
        return
    _show_upgrade(made.report)
    if out_ is not None:
        out.print(
            f"maps saved: suture translate {out_ / 'index'} STORED -o NEW moves what is stored, and {out_ / 'query'} "
            "takes new queries to the old index",
            soft_wrap=True,
        )


def _show_upgrade(report: dict[str, Any]) -> None:
    scores = {(s["setting"], s["relevant"], s["metric"]): s for s in report["scores"]}
    names = {"recall_at_1": "R@1", "recall_at_10": "R@10", "map": "mAP"}
    kinds = list(dict.fromkeys((s["relevant"], s["metric"]) for s in report["scores"]))
    table = Table(
        title=f"{report['old']['name']} -> {report['new']['name']}: value [95 % interval], share of new/new; "
        f"{report['held_out']:,} held-out items, maps of {report['anchors']:,} anchors",
        title_justify="left",
    )
    for column in ("queries", "index", *(f"{names[metric]}, {relevant}" for relevant, metric in kinds)):
        table.add_column(column)
    for setting in dict.fromkeys(s["setting"] for s in report["scores"]):
        found = [scores[setting, *kind] for kind in kinds]
        cells = [
            f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"
            + (f" {s['share']:.0%}" if s["share"] is not None else "")
            for s in found
        ]
        table.add_row(found[0]["queries"], found[0]["index"], *(escape(cell) for cell in cells))
    _wide(table, 190)
    for relevant, meaning in report["relevant"].items():
        out.print(f"{relevant}: {meaning}", style="dim", soft_wrap=True)
    ways = Table("way", "map", "us a query", "us in batches", "cross-validated mAP of the candidates")
    for way, of_way in report["ways"].items():
        ways.add_row(
            way, of_way["map"], f"{of_way['microseconds']:.0f}", f"{of_way['microseconds_in_batches']:.1f}",
            ", ".join(f"{name} {value:.3f}" for name, value in of_way["cross_validated_map"].items()),
        )  # fmt: skip
    _wide(ways, 190)
    out.print(f"advice: {report['advice']}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
