"""Stitched models as artifacts: a folder that needs none of this package, one ONNX file, and the MLflow record."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from uuid import uuid4

import numpy as np
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from align.files import write_atomically
from align.maps import Map
from align.rules.prototype import NearestPrototype
from registry import stitched_model
from registry.datasets.prompts import Prompts
from registry.encoders import CATALOG
from registry.encoders.base import Encoder, Exportable, ExportableImage, ExportableText, FromHub, Modality
from registry.encoders.cache import file_hash
from registry.errors import UserError, one_line, unknown

if TYPE_CHECKING:
    from fastapi import FastAPI
    from mlflow.entities import LoggedModel
    from onnx import ModelProto


FORMAT, GRAPHS = stitched_model.FORMAT, stitched_model.GRAPHS
CODE = Path(stitched_model.__file__)
"""The one Python file that travels in the MLflow artifact; it documents how a folder is read."""
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow", "safetensors", "tokenizers")
"""What the artifact needs; pinned to what is installed here, which is what it was verified with."""
TOLERANCE = 1e-4
"""How far, relative to the largest, the artifact's scores may be from the Python model's."""

MAX_BYTES = 1 << 28
"""Of one picture file."""
Format = Literal["onnx", "folder", "mlflow"]
CARD = "README.md"
NOT_FOR = (
    "Decisions about people: who they are, what they feel, what they may do. Nothing here was tested for that.",
    "Safety, medicine, law or any place where a wrong answer harms: it always names a class, also of a picture that "
    "shows none of them.",
    "Probabilities: a score is a cosine, good for ranking classes of one item and for nothing else.",
    "Data unlike what it was fitted on: the intervals below say nothing about it.",
)
"""What a stitched model's card warns of, whatever it was made of."""
EXAMPLE = """import json, sys
import numpy as np, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
about = json.loads(session.get_modelmeta().custom_metadata_map["suture"])
picture, how = Image.open(sys.argv[1]).convert("RGB"), about["preprocess"]
size, shape = how["size"], [int(side * how["resize"] / min(picture.size) + 0.5) for side in picture.size]
picture = picture.resize(shape, Image.Resampling.{resampling})
left, top = ((side - size) // 2 for side in picture.size)
pixels = np.asarray(picture.crop((left, top, left + size, top + size)))[None]
scores = session.run(["scores"], {{"pixels": pixels}})[0][0]
print(about["labels"][scores.argmax()], scores.max())
"""
TEXT_EXAMPLE = """import json, sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession("model.onnx")
about = json.loads(session.get_modelmeta().custom_metadata_map["suture"])
tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation(about["max_length"])
tokens = tokenizer.encode(sys.argv[1])
inputs = {"input_ids": np.array([tokens.ids]), "attention_mask": np.array([tokens.attention_mask])}
scores = session.run(["scores"], inputs)[0][0]
print(about["labels"][scores.argmax()], scores.max())
"""

# `mlflow.models.set_model` hands the model over through a global.
_saving = threading.Lock()


def export(
    folder: Path,
    *,
    image: Encoder,
    text: Encoder,
    map: Map,
    labels: Sequence[str],
    templates: Sequence[str],
    card: Mapping[str, Any],
) -> Path:
    """Write a zero-shot classifier: pictures by `image` and `map`, class names by `text`, then the cosine.

    The folder holds ``image.onnx``, ``text.onnx`` and ``tokenizer.json``; ``source.onnx`` and
    ``target.onnx``, which lead either side to the map's shared space; ``prototypes.safetensors`` (tensor
    ``prototypes``: labels x d, unit rows); ``config.json`` (format, preprocessing, labels, templates,
    dimensions, what the parts are, and `card`); ``README.md``, the card to read; ``CHECKSUMS`` (SHA-256 by
    file, JSON). There is no code and no pickle in it. Before it appears under its name it is loaded and compared with the Python model, on
    pictures and on all prompts. A stitched model that is already there is replaced.

    Parameters
    ----------
    image : an encoder with an ONNX graph (`ExportableImage`).
    text : an encoder with an ONNX graph and a tokenizer (`ExportableText`).
    map : fitted from `image`'s space to `text`'s, of any kind that `shared_graphs` knows.
    labels : the default class names; others may be given at call time.
    templates : sentences with ``{}`` where the class name goes.
    card : what the caller knows of data, licences and scores, as plain JSON values.

    Returns the folder. Raises `UserError` for an encoder that has no ONNX graph, dimensions that do not fit,
    a map that is not fitted or whose graphs do not agree with it, labels or templates that are not usable, a
    card that is no JSON, and a folder that holds something else.
    """
    folder = Path(folder)
    _check_encoder(image, "image", ExportableImage)
    _check_encoder(text, "text", ExportableText)
    assert isinstance(image, ExportableImage)
    assert isinstance(text, ExportableText)
    _check_map(map, image, text)
    if not labels or not templates:
        raise UserError(f"a stitched model needs at least one {'template' if labels else 'class name'}")
    prompts = Prompts(labels, templates)
    embedded = _embed(text, [str(prompts.read("prompt", index)) for index in range(len(prompts.keys))])
    rule = NearestPrototype(np.asarray(map.target_to_shared(embedded)), prompts.labels)
    config = {
        "format": FORMAT,
        "preprocess": image.preprocess.as_dict(),
        "max_length": text.max_length,
        "labels": list(labels),
        "templates": list(templates),
        "dimensions": {
            "image": image.dimension,
            "text": text.dimension,
            "shared": int(rule.prototypes.shape[1]),
        },
        "parts": {"image": _describe(image), "text": _describe(text), "map": _describe_map(map)},
        "card": dict(card),
    }
    try:
        written = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"the card or the map cannot be written as JSON: {error}") from error

    _check_place(folder)
    with _appearing(folder) as draft:
        _copy_graph(image, draft / "image.onnx")
        _copy_graph(text, draft / "text.onnx")
        shutil.copyfile(text.tokenizer_path(), draft / "tokenizer.json")
        shared_graphs(map, draft / "source.onnx", draft / "target.onnx")
        _write_prototypes(draft / "prototypes.safetensors", rule.prototypes)
        write_atomically(draft / "config.json", written)
        write_atomically(draft / CARD, model_card(config).encode())
        _sign(draft)
        _compare(draft, image, map, rule)
    return folder


def verify(folder: Path) -> None:
    """Raise `UserError`, naming the file, unless the folder is a stitched model as it was exported.

    Refused are files that are missing, differ from their checksum, are links, or lie outside the folder.
    """
    try:
        stitched_model.verify(folder)
    except stitched_model.DamagedModel as error:
        raise UserError(str(error)) from error


def load(folder: str | Path) -> stitched_model.Model:
    """A stitched model from its folder, or from the folder of its one ONNX file; every byte is checked first.

    Raises `UserError`, naming the file, for one that is missing, damaged, of another version, or elsewhere.
    """
    folder = Path(folder)
    listed = folder / "CHECKSUMS"
    one_file = listed.is_file() and f'"{OneFile.GRAPH}"'.encode() in listed.read_bytes()
    try:
        return OneFile.load(folder) if one_file else stitched_model.load(folder)
    except stitched_model.DamagedModel as error:
        raise UserError(str(error)) from error


def check_encoders(image: Encoder, text: Encoder) -> None:
    """Raise `UserError` for an encoder that cannot travel; it says what can be done instead."""
    _check_encoder(image, "image", ExportableImage)
    _check_encoder(text, "text", ExportableText)


def write(folder: Path, out: Path, format: Format, *, tokens: bool = False, images: Sequence[bytes] = ()) -> Path:
    """Write an exported folder again at `out`: as it is, as one ONNX file, or as an MLflow pyfunc.

    The ONNX file leads from uint8 RGB ``pixels`` (n, size, size, 3) of the network's own size to the cosines
    ``scores`` (n, classes) of the stored class names; with `tokens`, from ``input_ids`` and ``attention_mask``.
    Pixels are those that `Model.pixels` makes; ``example.py`` beside the file shows how. An affine map is folded
    into the encoder's last layer where that is linear. The file's metadata ``suture`` holds the labels and what the
    parts are. Before it appears it is compared with the folder, on four test patterns and on `images`, picture
    files' content, to a relative `TOLERANCE`.

    Returns `out`. Raises `UserError` for an unknown format, a damaged folder, an `out` that holds something else,
    graphs that cannot be joined, and scores that differ.
    """
    if format not in get_args(Format):
        raise unknown("format", format, get_args(Format))
    if tokens and format != "onnx":
        raise UserError("token ids are an input of --format onnx; the other formats take texts beside pictures")
    folder, out = Path(folder), Path(out)
    if (folder / OneFile.GRAPH).is_file():
        raise UserError(f"'{folder}' is one ONNX file already: export from the folder that it was made of")
    verify(folder)
    config = json.loads((folder / "config.json").read_bytes())
    _check_place(out, "MLmodel" if format == "mlflow" else "CHECKSUMS")
    with _appearing(out) as draft:
        if format == "mlflow":
            draft.rmdir()
            with tempfile.TemporaryDirectory() as scratch:
                _save_pyfunc(Path(scratch) / "model", folder, config)
                shutil.move(Path(scratch) / "model", draft)
        elif format == "folder":
            for name in _files(folder):
                shutil.copyfile(folder / name, draft / name)
        else:
            _write_one_file(folder, draft, config, tokens, images)
    return out


def predict(
    model: stitched_model.Model,
    paths: Sequence[Path],
    *,
    labels: Sequence[str] | None = None,
    top_k: int = 1,
) -> Iterator[dict[str, Any]]:
    """Answer picture files, the pictures and texts of folders, the lines of .txt files and the rows of .parquet files.

    Each answer has ``input``, and ``label`` and ``score``, with ``labels`` and ``scores``, best first, where `top_k`
    is above 1; or ``error`` where the input cannot be read or is not what the model takes. They come in batches, so
    that memory is bounded. Raises `UserError` for a path that is not there, and labels or a `top_k` that will not do.
    """
    try:
        if top_k < 1:
            raise stitched_model.BadInput(f"top_k must be at least 1, not {top_k}")
        names = model.labels if labels is None else stitched_model._names(labels)
        prototypes = model.prototypes(labels)
    except stitched_model.BadInput as error:
        raise UserError(str(error)) from None
    inputs = _inputs(paths)
    while batch := list(islice(inputs, stitched_model.BATCH)):
        answers: dict[int, dict[str, Any]] = {}
        rows: dict[type, list[tuple[int, Any]]] = {np.ndarray: [], str: []}
        for row, (name, content) in enumerate(batch):
            answers[row] = {"input": name}
            try:
                if isinstance(content, Path):
                    content = _read(content)
                ready = content if isinstance(content, str) else model.pixels(content)
                rows[type(ready)].append((row, ready))
            except (stitched_model.BadInput, OSError) as error:
                answers[row]["error"] = one_line(error).removeprefix("row 0: ")
        for kind, embed in ((np.ndarray, lambda part: model.embed_pixels(np.stack(part))), (str, model.embed_texts)):
            if not rows[kind]:
                continue
            numbers, part = zip(*rows[kind], strict=True)
            try:
                scores = embed(part) @ prototypes.T
            except stitched_model.BadInput as error:
                for row in numbers:
                    answers[row]["error"] = str(error)
                continue
            for row, found in zip(numbers, scores, strict=True):
                best = np.argsort(-found, kind="stable")[:top_k]
                answers[row] |= {"label": names[best[0]], "score": float(found[best[0]])}
                if top_k > 1:
                    answers[row] |= {"labels": [names[i] for i in best], "scores": [float(found[i]) for i in best]}
        yield from answers.values()


def count_inputs(paths: Sequence[Path]) -> int:
    """How many answers `predict` will give."""
    import pyarrow.parquet

    rows = [pyarrow.parquet.read_metadata(path).num_rows for path in paths if path.suffix == ".parquet"]
    return sum(rows) + sum(1 for _ in _inputs([path for path in paths if path.suffix != ".parquet"]))


def _inputs(paths: Sequence[Path]) -> Iterator[tuple[str, Path | bytes | str]]:
    """The name of each input, and its text, its bytes, or the file that has them."""
    for path in paths:
        if not path.exists():
            raise UserError(f"'{path}' is not there: give picture files, folders, or .txt or .parquet files")
    for path in paths:
        if path.is_dir():
            known = {*Image.registered_extensions(), ".txt"}
            for root, folders, files in os.walk(path):
                folders.sort()
                inside = [Path(root) / name for name in sorted(files)]
                yield from _inputs([file for file in inside if file.suffix.lower() in known and file.exists()])
        elif path.suffix.lower() == ".txt":
            with path.open(encoding="utf-8", errors="replace") as lines:
                yield from ((f"{path}:{n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip())
        elif path.suffix.lower() == ".parquet":
            yield from _parquet(path)
        else:
            yield str(path), path


def _parquet(path: Path) -> Iterator[tuple[str, bytes | str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is no parquet file that can be read: {one_line(error)}") from None
    columns = [name for name in ("image", "text") if name in file.schema_arrow.names]
    if not columns:
        raise UserError(f"'{path}' has no column 'image' or 'text', but {', '.join(file.schema_arrow.names)}")
    row = 0
    for batch in file.iter_batches(stitched_model.BATCH, columns=columns[:1]):
        for value in batch.column(0).to_pylist():
            # As the library `datasets` writes pictures.
            content = value.get("bytes") if isinstance(value, dict) else value
            yield f"{path}:{row}", content if isinstance(content, bytes | str) else b""
            row += 1


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise stitched_model.BadInput("it is no file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise stitched_model.BadInput(f"it has {size / 1e6:,.0f} MB, more than the {MAX_BYTES / 1e6:,.0f} of a picture")
    return path.read_bytes()


def log_model(
    folder: Path,
    *,
    tracking_uri: str,
    run_id: str,
    registered_name: str,
    alias: str = "champion",
    tags: Mapping[str, str],
) -> str:
    """Log an exported folder as an MLflow pyfunc from code, register it and let the alias point at it.

    Its input is one binary column ``image``, picture files' content; its output has the columns ``label`` and
    ``score``; the params are ``labels`` (default: the stored ones) and ``top_k``: see `stitched_model`.
    Threads may log at the same time: the run is named, and no active run or tracking URI of MLflow's is used.

    Returns the model URI, ``models:/name/version``. Raises `UserError` for a damaged folder, and MLflow's own
    exceptions when the run does not exist or the server does not answer; the model is then marked as failed.
    """
    verify(folder)
    # Imported late: MLflow takes more than a second, and an export does without.
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    config = json.loads((Path(folder) / "config.json").read_bytes())
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    run = client.get_run(run_id)
    logged = client.create_logged_model(
        experiment_id=run.info.experiment_id,
        name=registered_name,
        source_run_id=run_id,
        tags=dict(tags),
        params={part: values["name"] for part, values in config["parts"].items()},
        model_type="stitched",
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "model"
            _save_pyfunc(target, Path(folder), config, logged, run_id)
            client.log_model_artifacts(logged.model_id, str(target))
        client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        # A server that has stopped answering cannot be told either; the first error is the one that counts.
        with suppress(Exception):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    try:
        client.create_registered_model(registered_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        registered_name,
        # Not models:/<id>: MLflow's SQL store looks that up under the process's tracking URI, not this one.
        source=logged.artifact_location,
        run_id=run_id,
        tags=dict(tags),
        model_id=logged.model_id,
    )
    client.set_registered_model_alias(registered_name, alias, version.version)
    return f"models:/{registered_name}/{version.version}"


def server(folder: Path) -> FastAPI:
    """MLflow's scoring server of a stitched model, as an app to run.

    The code that answers is this package's own, not what lies beside a model. Raises `UserError` for a damaged folder.
    """
    verify(folder)
    import mlflow
    from mlflow.pyfunc import scoring_server

    config = json.loads((Path(folder) / "config.json").read_bytes())
    with tempfile.TemporaryDirectory() as scratch:
        _save_pyfunc(Path(scratch) / "model", Path(folder), config)
        return scoring_server.init(mlflow.pyfunc.load_model(str(Path(scratch) / "model")))


def shared_graphs(map: Map, source: Path, target: Path) -> None:
    """Write `map.source_to_shared` and `map.target_to_shared` as ONNX graphs, ``vectors`` in, ``mapped`` out.

    Every map has to prove it: both graphs must agree with it on random vectors. Raises `UserError` where they do not.
    """
    from align.onnx import Graph

    random = np.random.default_rng(0)
    for side, path, dimension, to_shared, add in (
        ("source", source, map.n_features_in_, map.source_to_shared, map.add_source_to_shared),
        ("target", target, map.target_dimension_, map.target_to_shared, map.add_target_to_shared),
    ):
        graph = Graph(dimension)
        graph.write(path, add(graph, "vectors"))
        offset = getattr(map, f"{side}_mean_", 0)
        probes = (random.standard_normal((8, dimension)) + offset).astype(np.float32)
        expected = np.asarray(to_shared(probes))
        _agree(_run(path, probes), expected, f"the map '{type(map).__name__}', {side} side,")


# --- what is refused


def _check_encoder(encoder: Encoder, modality: Modality, protocol: type) -> None:
    if getattr(encoder, "modality", None) != modality:
        raise UserError(
            f"'{encoder.name}' embeds {encoder.modality}s where a stitched model needs an {modality}s encoder"
        )
    if isinstance(encoder, protocol):
        return
    able = [entry.name for entry in CATALOG.values() if entry.backend == "onnxruntime" and entry.modality == modality]
    raise UserError(
        f"encoder '{encoder.name}' cannot travel in a stitched model: {encoder.backend} gives no ONNX graph. "
        f"Use one that can ({', '.join(able)}), or export the model to ONNX and use the encoder 'onnx'"
    )


def _check_map(map: Map, image: Encoder, text: Encoder) -> None:
    try:
        check_is_fitted(map)
    except NotFittedError as error:
        raise UserError(f"the map is not fitted: {error}") from error
    widths = map.n_features_in_, map.target_dimension_
    if widths != (image.dimension, text.dimension):
        raise UserError(
            f"the map leads from {widths[0]} to {widths[1]} dimensions, but '{image.name}' has "
            f"{image.dimension} and '{text.name}' has {text.dimension}"
        )


def _check_place(folder: Path, marker: str = "CHECKSUMS") -> None:
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / marker).is_file():
            raise UserError(f"'{folder}' holds something else than a stitched model: name a new folder")
    elif folder.exists() or folder.is_symlink():
        raise UserError(f"'{folder}' is not a folder: name a new one")


def _compare(folder: Path, image: Encoder, map: Map, rule: NearestPrototype) -> None:
    """Load what was written and compare it with the Python model, end to end, on pictures and all prompts."""
    model = stitched_model.load(folder)
    pictures = _pictures()
    expected = rule.scores(np.asarray(map.source_to_shared(image.embed(pictures))))
    # As if the labels were new ones: through the tokenizer and the text side of the artifact.
    prototypes = model._embed_labels(model.labels)
    found = model.embed_images([_png(picture) for picture in pictures])
    _agree(found @ prototypes.T, expected, "the exported model")
    _agree(found @ model.prototypes().T, expected, "the exported model with its stored prototypes")


def _agree(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    error = float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), sys.float_info.min)
    if not error <= TOLERANCE:
        raise UserError(
            f"{what} differs in ONNX from Python by {error:.1e} of its largest value, more than "
            f"{TOLERANCE:g}: it is not exported"
        )


# --- the parts of the folder


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A draft beside `folder`, which takes its place only when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (folder.with_name(f".{folder.name}.{uuid4().hex}") for _ in range(2))
    draft.mkdir()
    try:
        yield draft
        if folder.is_dir():
            os.rename(folder, old)
        try:
            os.rename(draft, folder)
        except BaseException:
            if old.is_dir():
                os.rename(old, folder)
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sign(folder: Path) -> None:
    """Write the checksums of all that is in the folder."""
    sums = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    write_atomically(folder / "CHECKSUMS", json.dumps(sums, indent=2).encode())


def _files(folder: Path) -> list[str]:
    """All files of a verified folder."""
    return [*json.loads((folder / "CHECKSUMS").read_bytes()), "CHECKSUMS"]


def _copy_graph(encoder: Exportable, path: Path) -> None:
    import onnx

    original = encoder.onnx_path()
    graph = onnx.load(str(original), load_external_data=False).graph
    if not any(tensor.external_data for tensor in graph.initializer):
        shutil.copyfile(original, path)
        return
    # Large weights lie in files beside the graph; the artifact has one file a graph.
    try:
        onnx.save(onnx.load(str(original)), str(path))
    except ValueError as error:
        raise UserError(f"'{original}' is larger than the 2 GB that one ONNX file can hold") from error


def _write_prototypes(path: Path, prototypes: np.ndarray) -> None:
    from safetensors.numpy import save

    write_atomically(path, save({"prototypes": np.ascontiguousarray(prototypes, dtype=np.float32)}))


def _describe(encoder: Encoder) -> dict[str, Any]:
    facts = ("name", "dimension", "preprocessing", "backend", "licence", "weights")
    described = {fact: getattr(encoder, fact) for fact in facts}
    if isinstance(encoder, FromHub):
        described |= {"repo": encoder.repo, "revision": encoder.revision}
    return described


def _describe_map(map: Map) -> dict[str, Any]:
    # A chain's parameters are estimators: their text says what they are.
    parameters = json.loads(json.dumps(map.get_params(deep=False), default=str))
    return {"name": type(map).__name__, "parameters": parameters, "fingerprint": map.fingerprint_}


def _embed(text: Encoder, texts: Sequence[str]) -> np.ndarray:
    steps = range(0, len(texts), text.batch_size)
    return np.concatenate([text.embed(texts[start : start + text.batch_size]) for start in steps])


def _run(graph: Path, vectors: np.ndarray) -> np.ndarray:
    return stitched_model._run(stitched_model._session(graph), vectors)


def _pictures() -> list[Image.Image]:
    """Four different pictures, none of them square or of a network's own size."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:1:90j, 0:1:120j]
    return [
        Image.fromarray(random.integers(0, 256, (70, 80, 3), dtype=np.uint8)),
        Image.fromarray((255 * np.stack([x, y, 1 - x], axis=2)).astype(np.uint8)),
        Image.fromarray((255 * np.stack([x * y, x > y, y > 0.5], axis=2)).astype(np.uint8)),
        Image.fromarray((127 + 127 * np.sin(40 * np.stack([x, y, x + y], axis=2))).astype(np.uint8)),
    ]


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


# --- one ONNX file


class OneFile(stitched_model.Model):
    """A stitched model in one ONNX file, read like the folder; its shared space is that of the scores themselves."""

    GRAPH = "model.onnx"

    def __init__(self, folder: Path) -> None:
        self._session = stitched_model._session(folder / self.GRAPH)
        self.config = json.loads(self._session.get_modelmeta().custom_metadata_map["suture"])
        if self.config["format"] != FORMAT:
            raise stitched_model.DamagedModel(
                f"'{folder}' has format {self.config['format']}; this code reads {FORMAT}"
            )
        self.labels = stitched_model._names(self.config["labels"])
        self._tokens = "max_length" in self.config
        if self._tokens:
            self._tokenizer = stitched_model._tokenizer(folder, self.config["max_length"])

    @classmethod
    def load(cls, folder: Path) -> OneFile:
        """Check every file against CHECKSUMS, then load; raises `DamagedModel`."""
        stitched_model.verify(folder, (cls.GRAPH,))
        with stitched_model._readable(folder):
            model = cls(folder)
            blank = None if model._tokens else stitched_model._blank(model.config)
            scores = model.embed_texts(["a"]) if blank is None else model.embed_pixels(blank)
            if scores.shape != (1, len(model.labels)):
                raise stitched_model.DamagedModel(f"'{folder}' does not give a score for each of its class names")
            return model

    def prototypes(self, labels: Sequence[str] | None = None) -> np.ndarray:
        """The unit matrix; raises `BadInput` for other class names than those in the file."""
        if labels is not None and tuple(labels) != self.labels:
            raise stitched_model.BadInput("one ONNX file has its class names built in: for others use the folder")
        return np.eye(len(self.labels), dtype=np.float32)

    def pixels(self, image: bytes, row: int = 0) -> np.ndarray:
        """As of the folder; raises `BadInput` where the file takes token ids."""
        if self._tokens:
            raise stitched_model.BadInput("this model takes texts, not pictures")
        return super().pixels(image, row)

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (n, size, size, 3) to scores (n, classes)."""
        return stitched_model._run(self._session, pixels)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to scores (n, classes)."""
        if not self._tokens:
            raise stitched_model.BadInput("this model takes pictures, not texts")
        return stitched_model._run(self._session, *self.tokens(texts))


def _write_one_file(folder: Path, draft: Path, config: dict[str, Any], tokens: bool, images: Sequence[bytes]) -> None:
    import onnx

    model = stitched_model.load(folder)
    about = {key: config[key] for key in ("format", "labels", "parts", "card")}
    about |= {"max_length": config["max_length"]} if tokens else {"preprocess": config["preprocess"]}
    encoder, side = (onnx.load(folder / name) for name in (("text.onnx", "target.onnx") if tokens else GRAPHS[:2]))
    joined = join(encoder, side, model.prototypes(), preprocess=None if tokens else config["preprocess"])
    onnx.helper.set_model_props(joined, {"suture": json.dumps(about)})
    try:
        write_atomically(draft / OneFile.GRAPH, joined.SerializeToString())
    except ValueError as error:
        raise UserError("the model is larger than the 2 GB that one ONNX file can hold: use --format folder") from error
    if tokens:
        shutil.copyfile(folder / "tokenizer.json", draft / "tokenizer.json")
        example = TEXT_EXAMPLE
    else:
        example = EXAMPLE.format(resampling=config["preprocess"]["interpolation"].upper())
    write_atomically(draft / "example.py", example.encode())
    write_atomically(draft / CARD, model_card(config).encode())
    _sign(draft)
    found = OneFile.load(draft)
    if tokens:
        texts = [template.replace("{}", label) for label in config["labels"] for template in config["templates"]]
        scores, expected = (one.embed_texts(texts[:64]) @ one.prototypes().T for one in (found, model))
    else:
        scores, expected = (one.scores([*map(_png, _pictures()), *images]) for one in (found, model))
    _agree(scores, expected, "the model")


def join(
    encoder: ModelProto, side: ModelProto, prototypes: np.ndarray, *, preprocess: dict[str, Any] | None
) -> ModelProto:
    """One graph of an encoder's, a map's side, unit length and the product with class prototypes (classes, d).

    With `preprocess` it begins at uint8 RGB pixels. Raises `UserError` where the graphs cannot be joined.
    """
    from onnx import TensorProto, checker, compose, helper, numpy_helper, version_converter

    def opset(model: ModelProto) -> int:
        return max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))

    # Names of two graphs, and our own, must not meet.
    joined, side = compose.add_prefix(encoder, "encoder/"), compose.add_prefix(side, "map/")
    try:
        if opset(encoder) < opset(side):
            joined = version_converter.convert_version(joined, opset(side))
        elif opset(side) < opset(encoder):
            side = version_converter.convert_version(side, opset(encoder))
    except Exception as error:  # the converter raises nearly anything
        raise UserError(f"the encoder's graph and the map's cannot be joined: {one_line(error)}") from error
    graph = joined.graph
    (output,) = graph.output[:1]

    def constant(values: Any, dtype: Any = np.float32) -> str:
        name = f"joined/constant{len(graph.initializer)}"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name

    def node(operator: str, *inputs: str, into: list[Any] | None = None, **attributes: Any) -> str:
        name = attributes.pop("output", None) or f"joined/value{len(graph.node)}{len(into or ())}"
        (graph.node if into is None else into).append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    affine = _affine(side.graph)
    if affine is None:
        _rename_inputs(side.graph, {side.graph.input[0].name: output.name})
        graph.initializer.extend(side.graph.initializer)
        graph.node.extend(side.graph.node)
        mapped = side.graph.output[0].name
    else:
        matrix, offset = affine
        mapped = output.name
        if (layer := _last_linear(graph)) is not None:
            mapped, weight, bias, done = layer
            matrix, offset = (
                (weight if matrix is None else weight @ matrix),
                (bias if matrix is None else bias @ matrix) + offset,
            )
            for one in done:
                graph.node.remove(one)
            used = {name for one in graph.node for name in one.input}
            for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
                graph.initializer.remove(tensor)
        if matrix is not None:
            mapped = node("MatMul", mapped, constant(matrix))
        if np.any(offset):
            mapped = node("Add", mapped, constant(offset))
    unit = node("LpNormalization", mapped, axis=-1, p=2)
    node("MatMul", unit, constant(prototypes.T), output="scores")
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(prototypes)]))
    del graph.value_info[:]
    if preprocess is None:
        _rename_inputs(graph, {f"encoder/{value.name}": value.name for value in encoder.graph.input})
    else:
        _begin_at_pixels(graph, preprocess, constant, node)
    joined.ir_version = max(encoder.ir_version, side.ir_version)
    try:
        checker.check_model(joined)
    except (checker.ValidationError, ValueError) as error:
        raise UserError(f"the encoder's graph and the map's cannot be joined: {one_line(error)}") from error
    return joined


def _rename_inputs(graph: Any, names: dict[str, str]) -> None:
    for value in graph.input:
        value.name = names.get(value.name, value.name)
    for one in graph.node:
        one.input[:] = [names.get(name, name) for name in one.input]


def _begin_at_pixels(graph: Any, how: dict[str, Any], constant: Any, node: Any) -> None:
    """The same steps in the same order as `stitched_model._normalise`."""
    from onnx import TensorProto, helper

    names = {tensor.name for tensor in graph.initializer}
    (images,) = [value for value in graph.input if value.name not in names]
    std = np.asarray(how["std"])
    scale, shift = how["white"] / 255 / std, np.asarray(how["mean"]) / std
    first: list[Any] = []
    value = node("Cast", "pixels", into=first, to=TensorProto.FLOAT)
    if how["channels"] == "BGR":
        value = node("Gather", value, constant([2, 1, 0], np.int64), into=first, axis=3)
    if how["layout"] == "NCHW":
        value = node("Transpose", value, into=first, perm=[0, 3, 1, 2])
        scale, shift = scale[:, None, None], shift[:, None, None]
    value = node("Mul", value, constant(scale), into=first)
    node("Sub", value, constant(shift), into=first, output=images.name)
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.remove(images)
    shape = ["n", how["size"], how["size"], 3]
    graph.input.insert(0, helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape))


def _constants(graph: Any) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    found = {tensor.name: tensor for tensor in graph.initializer}
    for one in graph.node:
        if one.op_type == "Constant" and one.attribute[0].name == "value":
            found[one.output[0]] = one.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}


def _affine(graph: Any) -> tuple[np.ndarray | None, np.ndarray] | None:
    """The matrix (None for the unit matrix) and offset of a graph that only shifts and multiplies, in float64."""
    constants = _constants(graph)
    value, matrix, offset = graph.input[0].name, None, np.zeros(1)
    for one in graph.node:
        if one.op_type == "Constant":
            continue
        if not one.input or one.input[0] != value:
            return None
        if one.op_type in ("MatMul", "Add", "Sub") and one.input[1] in constants:
            step = constants[one.input[1]].astype(np.float64)
            if one.op_type == "MatMul":
                offset = np.broadcast_to(offset, len(step)) @ step
                matrix = step if matrix is None else matrix @ step
            else:
                offset = offset + (step if one.op_type == "Add" else -step)
        elif one.op_type != "Identity":
            return None
        value = one.output[0]
    return matrix, offset


def _last_linear(graph: Any) -> tuple[str, np.ndarray, np.ndarray, list[Any]] | None:
    """The linear layer that a graph ends with: its input, weight (in, out), bias and nodes; None where it does not."""
    from onnx import helper

    constants = _constants(graph)
    producer = {name: one for one in graph.node for name in one.output}
    uses = [name for one in graph.node for name in one.input] + [value.name for value in graph.output[1:]]
    done: list[Any] = []
    value, bias = graph.output[0].name, np.zeros(1)
    # Nobody else may need what the layer gives.
    while (one := producer.get(value)) is not None and uses.count(value) == len(done[:1]):
        if one.op_type == "Identity":
            value = one.input[0]
        elif one.op_type == "Add" and any(name in constants for name in one.input):
            inner, outer = one.input if one.input[1] in constants else one.input[::-1]
            bias = bias + constants[outer].astype(np.float64)
            value = inner
        elif one.op_type == "MatMul" and one.input[1] in constants and constants[one.input[1]].ndim == 2:
            weight = constants[one.input[1]].astype(np.float64)
            return one.input[0], weight, np.broadcast_to(bias, weight.shape[1]), [*done, one]
        elif one.op_type == "Gemm" and all(name in constants for name in one.input[1:]):
            how = {a.name: helper.get_attribute_value(a) for a in one.attribute}
            weight = constants[one.input[1]].astype(np.float64) * how.get("alpha", 1)
            weight = weight.T if how.get("transB") else weight
            if how.get("transA"):
                return None
            if len(one.input) > 2:
                bias = bias + constants[one.input[2]] * how.get("beta", 1)
            return one.input[0], weight, np.broadcast_to(bias, weight.shape[1]), [*done, one]
        else:
            return None
        done.append(one)
    return None


# --- the card


def model_card(config: Mapping[str, Any]) -> str:
    """The card of a stitched model in Markdown, from its config.json."""
    parts, card = config["parts"], dict(config["card"])
    lines = [
        f"# {parts['image']['name']} -> {parts['text']['name']}: pictures by class names",
        "A stitched model: two pretrained encoders that were never trained together, joined by a fitted map. "
        "Class names are embedded as text, pictures are led into the same space, the nearest class is the answer.",
        "## What it must not be used for",
        *(f"- {line}" for line in NOT_FOR),
        "## Parts and licences",
        "| part | what | licence | weights (SHA-256) |",
        "|---|---|---|---|",
    ]
    for side in ("image", "text"):
        part = parts[side]
        source = f" ({part['repo']} at {part['revision']})" if part.get("repo") else ""
        lines.append(f"| {side} encoder | {part['name']}{source} | {part['licence']} | `{part['weights']}` |")
    fitted = parts["map"]
    data = card.pop("data", "data that the exporter did not name")
    lines += [
        f"| map | {fitted['name']} | as of the data, {data} | `{fitted['fingerprint']}` |",
        "Whoever passes the model on has to keep all of these licences.",
        "## Data",
        f"Fitted on {card.pop('fitted_on', 'anchors')} of {data}.",
        f"Default class names: {', '.join(config['labels'])}. Templates: {', '.join(config['templates'])}.",
        "## Scores",
    ]
    scores = card.pop("scores", None)
    if isinstance(scores, list) and scores and all(isinstance(one, dict) and "value" in one for one in scores):
        lines += ["| split | task | metric | value | 95 % interval | n | baselines |", "|---|---|---|---|---|---|---|"]
        for one in scores:
            beside = ", ".join(f"{name} {value:.3f}" for name, value in one.get("baselines", {}).items())
            lines.append(
                f"| {one.get('split', '')} | {one.get('task', '')} | {one.get('metric', '')} | {one['value']:.3f} | "
                f"{one['low']:.3f} to {one['high']:.3f} | {one['n']} {one.get('unit', '')} | {beside} |"
            )
        if "scores_of" in card:
            lines.append(f"Scores are of {card.pop('scores_of')}.")
    else:
        lines.append("None were given." if scores is None else f"```json\n{json.dumps(scores, indent=1)}\n```")
    if card:
        lines += ["## Further", *(f"- {key}: {value}" for key, value in card.items())]
    text = ""
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        text += line + ("\n" if line[:1] == after[:1] and line[:1] in "|-" else "\n\n")
    return text.rstrip() + "\n"


# --- the MLflow artifact


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _save_pyfunc(
    target: Path, folder: Path, config: dict[str, Any], logged: LoggedModel | None = None, run_id: str | None = None
) -> None:
    """Write the MLflow model: the folder as artifacts/stitched, the code, signature and requirements."""
    import mlflow
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "score")]),
        params=ParamSchema(
            [
                ParamSpec("labels", DataType.string, config["labels"], (-1,)),
                ParamSpec("top_k", DataType.long, 1),
            ]
        ),
    )
    # MLflow names its copy after the folder, and the artifact's layout should not depend on that.
    named = target.with_name("stitched")
    named.mkdir()
    for name in _files(folder):
        _link(folder / name, named / name)
    with _saving:
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(CODE),
            artifacts={"stitched": str(named)},
            signature=signature,
            input_example=pd.DataFrame({"image": [_png(Image.new("RGB", (8, 8), "red"))]}),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
            mlflow_model=logged
            and Model(
                artifact_path=logged.artifact_location,
                model_uuid=logged.model_id,
                run_id=run_id,
                model_id=logged.model_id,
            ),
        )
