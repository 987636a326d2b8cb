"""What all data sets check and hash alike: keys, names of columns, classes, texts and fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from registry import errors
from registry.datasets.base import Modality


def names(option: str, value: str | Sequence[str] | None) -> list[str]:
    """One name or several, as a list without repeats. Raises `UserError` for anything that is not a name."""
    given = [value] if isinstance(value, str) else list(value or [])
    if not all(isinstance(name, str) and name for name in given):
        raise errors.UserError(f"option '{option}' takes a name or a list of names, not {value!r}")
    return list(dict.fromkeys(given))


def check_keys(dataset: str, keys: Sequence[str]) -> None:
    """Raise `UserError` if there is no item, or if two share a key (the first such key is named)."""
    if not keys:
        raise errors.UserError(f"data set '{dataset}' has no items")
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise errors.UserError(f"data set '{dataset}' has the key '{key}' twice: keys must be unique")
        seen.add(key)


def check_columns(dataset: str, asked: Iterable[str | None], there: Iterable[str]) -> None:
    """Raise `UserError` for the first asked column that the data does not have, listing those it has."""
    valid = list(there)
    for column in asked:
        if column is not None and column not in valid:
            raise errors.unknown(f"column of data set '{dataset}'", column, valid)


def check_column(dataset: str, column: str, columns: Mapping[str, Modality]) -> None:
    """Raise `UserError` if a data set does not offer the column."""
    check_columns(dataset, [column], columns)


def classes(dataset: str, column: str, keys: Sequence[str], values: Iterable[object]) -> list[str]:
    """Labels or groups as strings, one a key. Raises `UserError` naming the first item that has none."""
    found = []
    for key, value in zip(keys, values, strict=True):
        if value is None or value == "":
            raise errors.UserError(f"data set '{dataset}': item '{key}' has no value in the column '{column}'")
        found.append(str(value))
    return found


def text(key: str, value: object) -> str:
    """The text of one item. Raises `BadItem` if there is none."""
    if not isinstance(value, str) or not value.strip():
        raise errors.BadItem(key, "its text is empty")
    return value


def digest(keys: Sequence[str], contents: Iterable[bytes | str | None]) -> str:
    """SHA-256 (hex) of keys and contents in order, each part after its length, so that none run together.

    ``contents`` gives one part a key, or any number of parts that identify the content.
    """
    total = hashlib.sha256(str(len(keys)).encode())
    for parts in (keys, contents):
        for part in parts:
            if part is None:
                total.update(b"\0none")
            else:
                data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
                total.update(b"\0%d:" % len(data))
                total.update(data)
    return total.hexdigest()
