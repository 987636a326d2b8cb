"""Vectors that a user has already: read from .npy, .npz, .safetensors or .parquet files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from registry.encoders.base import Modality
from registry.encoders.cache import file_hash
from registry.encoders.packages import versions
from registry.errors import UserError, unknown

_SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


class Precomputed:
    """An embedding space that is a file: it has an encoder's identity, but nothing new can be embedded.

    Making one reads the vectors' shape, so that a wrong file is found at once.
    """

    batch_size = 0

    def __init__(
        self,
        name: str,
        *,
        path: Path,
        modality: Modality,
        keys: Path | None = None,
        licence: str = "unknown",
    ) -> None:
        self._path = path
        self._keys = keys
        self.weights = file_hash(path) if (sidecar := _sidecar(path, keys)) is None else file_hash(path, sidecar)
        self.name = f"{name}:{path.stem}"
        self.modality: Modality = modality
        self.dimension = self.load()[1].shape[1]
        self.preprocessing = f"none: read from a {path.suffix} file"
        self.backend = versions("numpy")
        self.licence = licence

    def load(self) -> tuple[list[str], np.ndarray]:
        """The keys and the vectors, as `read_vectors` gives them."""
        return read_vectors(self._path, self._keys)


def read_vectors(path: Path, keys: Path | None = None) -> tuple[list[str], np.ndarray]:
    """The keys of n items and their vectors (n, d), as stored; .npy and .safetensors are memory-mapped.

    Vectors are the array ``vectors`` (.npz, .safetensors; an only one may have any name), the whole array
    (.npy), or the only column of lists (.parquet). Keys are the file `keys`; or else ``NAME.keys.json``, a
    list, or ``NAME.keys.txt``, one a line, beside the file; or else what is inside: the array ``keys``
    (.npz), JSON under ``keys`` in the metadata (.safetensors), the column ``key`` or the only column of texts
    (.parquet); or else the numbers from 0.
    Raises `UserError` for a format that is not one of these, a damaged file, an array that is not (n, d) of
    floating point numbers, keys that are not as many as the vectors, and a key that comes twice.
    """
    if not path.is_file():
        raise UserError(f"no such file: '{path}'")
    if path.suffix not in _READERS:
        raise unknown(f"format of '{path}':", path.suffix, _READERS)
    try:
        inside, vectors = _READERS[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # each format's library has its own for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"'{path}' is damaged or not a {path.suffix} file: {reason}") from error
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise UserError(f"'{path}' holds {vectors.dtype} of shape {vectors.shape}, not floating point numbers (n, d)")
    sidecar = _sidecar(path, keys)
    names = _read_keys(sidecar) if sidecar else inside
    if names is None:
        names = [str(row) for row in range(len(vectors))]
    if len(names) != len(vectors):
        raise UserError(
            f"'{path}' has {len(vectors)} vectors but {len(names)} keys{f' in {sidecar}' if sidecar else ''}"
        )
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise UserError(f"'{path}' has the key '{twice}' more than once")
    return names, vectors


def _sidecar(path: Path, keys: Path | None) -> Path | None:
    if keys is not None:
        return keys
    beside = (path.with_suffix(f".keys{suffix}") for suffix in (".json", ".txt"))
    return next((file for file in beside if file.is_file()), None)


def _read_keys(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        return _key_list(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the keys in '{path}': {error}") from error


def _key_list(values: Any) -> list[str]:
    if not isinstance(values, list):
        raise ValueError("the keys are not a list")
    return [str(value) for value in values]


def _one(names: list[str], wanted: str, path: Path) -> str:
    if wanted in names:
        return wanted
    if len(names) == 1:
        return names[0]
    raise UserError(f"'{path}' has no '{wanted}'; it has {', '.join(names) or 'nothing'}")


def _npy(path: Path) -> tuple[None, np.ndarray]:
    return None, np.load(path, mmap_mode="r", allow_pickle=False)


def _npz(path: Path) -> tuple[list[str] | None, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        keys = _key_list(arrays["keys"].tolist()) if "keys" in arrays.files else None
        return keys, arrays[_one([name for name in arrays.files if name != "keys"], "vectors", path)]


def _safetensors(path: Path) -> tuple[list[str] | None, np.ndarray]:
    # Read by hand because the library copies: the format is a length, a JSON header and the plain arrays.
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    tensor = header[_one(list(header), "vectors", path)]
    if tensor["dtype"] not in _SAFETENSORS_TYPES:
        raise unknown(f"type of numbers in '{path}':", tensor["dtype"], _SAFETENSORS_TYPES)
    start, end = tensor["data_offsets"]
    if 8 + length + end > path.stat().st_size:
        raise ValueError("the file is shorter than its header says")
    dtype = np.dtype(_SAFETENSORS_TYPES[tensor["dtype"]])
    if end - start != dtype.itemsize * int(np.prod(tensor["shape"])):
        raise ValueError("the header contradicts itself")
    vectors = np.memmap(path, dtype, mode="r", offset=8 + length + start, shape=tuple(tensor["shape"]))
    return (_key_list(json.loads(metadata["keys"])) if "keys" in metadata else None), vectors


def _parquet(path: Path) -> tuple[list[str] | None, np.ndarray]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    lists = [
        field.name
        for field in schema
        if pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_fixed_size_list(field.type)
    ]
    texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    vector_column = _one(lists, "vectors", path)
    key_column = next((name for name in ("key", "keys") if name in schema.names), texts[0] if len(texts) == 1 else None)
    table = pq.read_table(path, columns=[vector_column, *([key_column] if key_column else [])])
    column = table[vector_column].combine_chunks()
    if column.null_count:
        raise UserError(f"'{path}' has {column.null_count} rows without a vector")
    widths = set(pc.list_value_length(column).unique().to_pylist())
    if len(widths) != 1:
        raise UserError(f"'{path}' has vectors of different lengths: {', '.join(map(str, sorted(widths)))}")
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), widths.pop())
    return (_key_list(table[key_column].to_pylist()) if key_column else None), vectors


_READERS: dict[str, Callable[[Path], tuple[list[str] | None, np.ndarray]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}
