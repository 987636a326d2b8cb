"""What every data set offers: keyed items in columns of one modality each, and labels and groups if any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from registry.encoders.base import Item, Modality


class Dataset(Protocol):
    """Items under stable keys, each seen through one or more columns (a picture, a name in German, ...)."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> Mapping[str, Modality]:
        """What can be embedded: column name to modality."""
        ...

    @property
    def keys(self) -> Sequence[str]:
        """One unique key an item, stable between runs; spaces are joined on it."""
        ...

    @property
    def labels(self) -> Sequence[str] | None:
        """The class of each item, or None where there is none."""
        ...

    @property
    def groups(self) -> Sequence[str] | None:
        """What must stay together when whole groups are held out (a subgroup of labels, a class), or None."""
        ...

    def fingerprint(self, column: str) -> str:
        """SHA-256 (hex) of the column's content and of the keys: equal content, equal fingerprint."""
        ...

    def read(self, column: str, index: int) -> Item:
        """One item: an RGB picture or a text. Raises `registry.errors.BadItem` where it cannot be read."""
        ...
