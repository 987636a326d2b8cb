"""The folder of a stitched model: written as a draft, checksummed, verified, and compared with Python."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from align.files import write_atomically
from registry import stitched_model
from registry.encoders.cache import file_hash
from registry.errors import UserError

TOLERANCE = 1e-4
"""How far, relative to the largest, the artifact's scores may be from the Python model's."""


def verify(folder: Path) -> dict[str, Any]:
    """Raise `UserError`, naming the file, unless the folder is a stitched model as it was exported; gives its config.

    Refused are files that are missing, differ from their checksum, are links, or lie outside the folder.
    """
    try:
        stitched_model.verify(folder)
    except stitched_model.DamagedModel as error:
        raise UserError(str(error)) from error
    return json.loads((Path(folder) / "config.json").read_bytes())


def check_place(folder: Path, marker: str = "CHECKSUMS") -> None:
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / marker).is_file():
            raise UserError(f"'{folder}' holds something else than a stitched model: name a new folder")
    elif folder.exists() or folder.is_symlink():
        raise UserError(f"'{folder}' is not a folder: name a new one")


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
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


def sign(folder: Path) -> None:
    """Write the checksums of all that is in the folder."""
    sums = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    write_atomically(folder / "CHECKSUMS", json.dumps(sums, indent=2).encode())


def agree(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    error = float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), sys.float_info.min)
    if not error <= TOLERANCE:
        raise UserError(
            f"{what} differs in ONNX from Python by {error:.1e} of its largest value, more than "
            f"{TOLERANCE:g}: it is not exported"
        )


def patterns() -> list[Image.Image]:
    """Four different pictures, none of them square or of a network's own size."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:1:90j, 0:1:120j]
    return [
        Image.fromarray(random.integers(0, 256, (70, 80, 3), dtype=np.uint8)),
        Image.fromarray((255 * np.stack([x, y, 1 - x], axis=2)).astype(np.uint8)),
        Image.fromarray((255 * np.stack([x * y, x > y, y > 0.5], axis=2)).astype(np.uint8)),
        Image.fromarray((127 + 127 * np.sin(40 * np.stack([x, y, x + y], axis=2))).astype(np.uint8)),
    ]


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
