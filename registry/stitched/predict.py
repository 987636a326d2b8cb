"""Pictures and texts from files answered by a stitched model, in batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from registry import stitched_model
from registry.errors import UserError, one_line


def predict(
    model: stitched_model.Model,
    inputs: Iterable[tuple[str, Path | bytes | str | Exception]],
    *,
    labels: Sequence[str] | None = None,
    top_k: int = 1,
    rule: str = "cosine",
    temperature: float | None = None,
    output: str = "labels",
) -> Iterator[dict[str, Any]]:
    """Answer inputs, each a name with a picture file or its content, a text, or why there is none: see `inputs_of`.

    Each answer has ``input``, and ``label`` and ``score``, with ``labels`` and ``scores``, best first, where `top_k`
    is above 1, or ``embedding``; or ``error`` where the input cannot be read or is not what the model takes. They come
    in batches, so that memory is bounded. `rule`, `temperature` and `output` are as of `stitched_model.Model.answers`.
    Raises `UserError` for a path that is not there, and parameters that will not do.
    """
    inputs = iter(inputs)
    while batch := list(islice(inputs, stitched_model.BATCH)):
        names, items = zip(*batch, strict=True)
        try:
            answers = model.answers(items, labels, top_k, rule=rule, temperature=temperature, output=output)
        except stitched_model.BadInput as error:
            raise UserError(str(error)) from None
        for name, item, answer in zip(names, items, answers, strict=True):
            if isinstance(item, Exception):
                answer = {"error": one_line(item)}
            elif "embedding" in answer:
                answer["embedding"] = answer["embedding"].tolist()
            elif "labels" in answer:
                best = {"label": answer["labels"][0], "score": answer["scores"][0]}
                answer = best | answer if top_k > 1 else best
            yield {"input": name} | answer


def count_inputs(paths: Sequence[Path]) -> int:
    """How many inputs there are in `paths`."""
    import pyarrow.parquet

    rows = [pyarrow.parquet.read_metadata(path).num_rows for path in paths if path.suffix == ".parquet"]
    return sum(rows) + sum(1 for _ in inputs_of([path for path in paths if path.suffix != ".parquet"]))


def inputs_of(paths: Sequence[Path]) -> Iterator[tuple[str, Path | bytes | str | Exception]]:
    """Picture files, the pictures and texts of folders, the lines of .txt files and the rows of .parquet files, by name.

    Raises `UserError` for a path that is not there.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"'{path}' is not there: give picture files, folders, or .txt or .parquet files")
    for path in paths:
        if path.is_dir():
            known = {*Image.registered_extensions(), ".txt"}
            for root, folders, files in os.walk(path):
                folders.sort()
                inside = [Path(root) / name for name in sorted(files)]
                yield from inputs_of([file for file in inside if file.suffix.lower() in known and file.exists()])
        elif path.suffix.lower() == ".txt":
            with path.open(encoding="utf-8", errors="replace") as lines:
                yield from ((f"{path}:{n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip())
        elif path.suffix.lower() == ".parquet":
            yield from _parquet(path)
        else:
            yield str(path), path


def _parquet(path: Path) -> Iterator[tuple[str, bytes | str | Exception]]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Of a row group, which may be larger than memory, pages are read as they are needed.
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is no parquet file that can be read: {one_line(error)}") from None
    columns = [name for name in ("image", "text") if name in file.schema_arrow.names]
    if not columns:
        raise UserError(f"'{path}' has no column 'image' or 'text', but {', '.join(file.schema_arrow.names)}")
    row = 0
    try:
        for batch in file.iter_batches(stitched_model.BATCH, columns=columns[:1]):
            for value in batch.column(0).to_pylist():
                # As the library `datasets` writes pictures.
                content = value.get("bytes") if isinstance(value, dict) else value
                yield f"{path}:{row}", content if isinstance(content, bytes | str) else UserError("it is empty")
                row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{path}' cannot be read after row {row}: {one_line(error)}") from None
