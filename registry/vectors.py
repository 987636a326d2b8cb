"""A user's own vector files: fit a map between two of them, translate a third, without a configuration."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from align import MAPS, Map, Pair, Space, load_map, make_map
from align.parallel import in_order
from registry.encoders.precomputed import read_vectors
from registry.errors import UserError, one_line, unknown

BLOCK = 4096
FORMATS = (".npy", ".npz", ".safetensors", ".parquet")


def fit_files(source: Path, target: Path, name: str, parameters: dict[str, Any]) -> tuple[Map, int]:
    """A map fitted between two files of vectors, and the number of rows that it was fitted on.

    Rows are joined on their keys; without keys, row i of one is row i of the other. A map that needs no pairs
    gets all rows of both. Raises `UserError` for files, names or vectors that will not do.
    """
    if name not in MAPS:
        raise unknown("map", name, MAPS)
    try:
        unfitted = make_map(name, **parameters)
    except ValueError as error:
        raise UserError(one_line(error)) from None
    (source_keys, X), (target_keys, Y) = read_vectors(source), read_vectors(target)
    if unfitted.paired:
        if not _has_keys(source_keys) and not _has_keys(target_keys) and len(X) != len(Y):
            raise UserError(
                f"{source} has {len(X)} rows and {target} {len(Y)}, and neither has keys to join them on: "
                "give both the same items in the same order, or keys beside them (NAME.keys.json)"
            )
        try:
            pair = Pair.join(Space(str(source), source_keys, [X]), Space(str(target), target_keys, [Y]))
        except ValueError as error:
            raise UserError(one_line(error)) from None
        X, Y = pair.take(np.arange(len(pair)))
    try:
        return unfitted.fit(np.asarray(X), np.asarray(Y)), len(X)
    except ValueError as error:
        raise UserError(f"{name} cannot be fitted on {source} and {target}: {one_line(error)}") from None


def _has_keys(keys: list[str]) -> bool:
    return any(key != str(row) for row, key in enumerate(keys))


def translate_file(
    folder: Path, vectors: Path, out: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[int, int]:
    """Map every vector of a file and write a file with the same keys; gives (rows, dimension).

    The ending of `out` says the format. .npy is written in blocks, so that memory does not grow with the rows.
    `out` appears when it is whole, and not at all where anything fails.
    """
    if out.suffix not in FORMATS:
        raise unknown(f"format of '{out}':", out.suffix, FORMATS)
    try:
        fitted = load_map(folder)
    except ValueError as error:
        raise UserError(one_line(error)) from None
    keys, rows = read_vectors(vectors)
    if rows.shape[1] != fitted.n_features_in_:
        raise UserError(
            f"{vectors} has vectors of {rows.shape[1]} dimensions, but the map in {folder} translates {fitted.n_features_in_}"
        )
    if not len(rows):
        raise UserError(f"{vectors} holds no vectors")

    def mapped(start: int) -> np.ndarray:
        try:
            return np.ascontiguousarray(fitted.transform(np.asarray(rows[start : start + BLOCK])))
        except ValueError as error:
            raise UserError(f"{vectors}, rows from {start}: {one_line(error)}") from None

    def blocks() -> Iterator[np.ndarray]:
        starts = range(0, len(rows), BLOCK)
        for start, block in zip(starts, in_order(mapped, starts), strict=True):
            yield block
            progress(min(start + BLOCK, len(rows)), len(rows))

    first = fitted.transform(np.asarray(rows[:1]))
    shape = (len(rows), int(first.shape[1]))
    out.parent.mkdir(parents=True, exist_ok=True)
    with _appearing(out) as draft:
        if out.suffix == ".npy":
            layout = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
            with draft.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, layout)
                for block in blocks():
                    file.write(block.data)
        else:
            _write(draft, out.suffix, keys, np.concatenate(list(blocks())))
    if out.suffix == ".npy" and _has_keys(keys):
        with _appearing(out.with_suffix(".keys.json")) as draft:
            draft.write_text(json.dumps(keys))
    return shape


def _write(path: Path, suffix: str, keys: list[str], vectors: np.ndarray) -> None:
    if suffix == ".npz":
        with path.open("wb") as file:
            np.savez(file, keys=np.array(keys), vectors=vectors)
    elif suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({"vectors": np.ascontiguousarray(vectors)}, path, metadata={"keys": json.dumps(keys)})
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.array(np.ascontiguousarray(vectors).ravel())
        lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        pq.write_table(pa.table({"key": keys, "vectors": lists}), path)


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when all went well, and is gone otherwise."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o644)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
