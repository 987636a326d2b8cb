"""A stitched model read from, and written in, each of its formats."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from align.files import write_atomically
from registry import stitched_model
from registry.errors import UserError, unknown
from registry.stitched.folder import appearing, check_place, sign, verify
from registry.stitched.onefile import OneFile, write_one_file
from registry.stitched.pyfunc import save_pyfunc

Format = Literal["onnx", "folder", "mlflow"]
Inputs = Literal["images", "vectors"]


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


def write(
    folder: Path,
    out: Path,
    format: Format,
    *,
    inputs: Inputs = "images",
    tokens: bool = False,
    images: Sequence[bytes] = (),
) -> Path:
    """Write an exported folder again at `out`: as it is, as one ONNX file, or as an MLflow pyfunc.

    The ONNX file leads from uint8 RGB ``pixels`` (n, size, size, 3) of the network's own size to the cosines
    ``scores`` (n, classes) of the stored class names; with `tokens`, from ``input_ids`` and ``attention_mask``.
    Pixels are those that `Model.pixels` makes; ``example.py`` beside the file shows how. An affine map is folded
    into the encoder's last layer where that is linear. The file's metadata ``suture`` holds the labels and what the
    parts are. Before it appears it is compared with the folder, on four test patterns and on `images`, picture
    files' content, to a relative `TOLERANCE`.

    With `inputs` 'vectors' the model begins behind the image encoder: it takes that one's float32 vectors, and does
    without its graph. A folder of an older format is written in the present one.

    Returns `out`. Raises `UserError` for an unknown format, a damaged folder, an `out` that holds something else,
    graphs that cannot be joined, and scores that differ.
    """
    if format not in get_args(Format):
        raise unknown("format", format, get_args(Format))
    if inputs not in get_args(Inputs):
        raise unknown("kind of inputs", inputs, get_args(Inputs))
    if inputs == "vectors" and format == "onnx":
        raise UserError(
            "vectors are an input of --format mlflow and folder; the ONNX file begins at pixels or token ids"
        )
    if tokens and format != "onnx":
        raise UserError("token ids are an input of --format onnx; the other formats take texts beside pictures")
    folder, out = Path(folder), Path(out)
    if (folder / OneFile.GRAPH).is_file():
        raise UserError(f"'{folder}' is one ONNX file already: export from the folder that it was made of")
    config = verify(folder)
    check_place(out, "MLmodel" if format == "mlflow" else "CHECKSUMS")
    with appearing(out) as draft:
        if format == "mlflow":
            draft.rmdir()
            with tempfile.TemporaryDirectory() as scratch:
                _write_folder(folder, Path(scratch) / "folder", config, inputs)
                save_pyfunc(Path(scratch) / "model", Path(scratch) / "folder")
                shutil.move(Path(scratch) / "model", draft)
        elif format == "folder":
            _write_folder(folder, draft, config, inputs)
        else:
            write_one_file(folder, draft, config, tokens, images)
    return out


def _write_folder(folder: Path, draft: Path, config: dict[str, Any], inputs: Inputs) -> None:
    """The folder again, in the present format, with or without its image encoder."""
    model = stitched_model.load(folder)
    if inputs == "images" and model.takes == "vectors":
        raise UserError(f"'{folder}' was exported for vectors, without its image encoder: export from the whole model")
    config |= {"format": stitched_model.FORMAT, "inputs": inputs}
    config["digest"] = stitched_model.digest(model.labels, model.prototypes())
    draft.mkdir(exist_ok=True)
    for name in stitched_model.verify(folder):
        if name != "config.json" and (inputs, name) != ("vectors", "image.onnx"):
            shutil.copyfile(folder / name, draft / name)
    write_atomically(draft / "config.json", json.dumps(config, indent=2, ensure_ascii=False).encode())
    sign(draft)
    stitched_model.load(draft)
