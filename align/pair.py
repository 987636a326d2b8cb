"""A pair: two spaces joined on their common items, and its splits into anchors and held-out items."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.space import Space


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers (of the joined items): what maps are fitted on, and what they never see."""

    anchors: np.ndarray
    held_out: np.ndarray
    folds: np.ndarray
    """The cross-validation fold of each anchor, (len(anchors),), for every choice that is made on anchors."""


def _order(names: Sequence[str], random_state: int) -> list[int]:
    """A pseudo-random order in which two names stand the same way round whatever the other names are."""
    digests = [hashlib.sha256(f"{random_state}\0{name}".encode()).digest() for name in names]
    return sorted(range(len(names)), key=digests.__getitem__)


def split(
    keys: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    held_out: float = 0.3,
    n_folds: int = 5,
    random_state: int,
) -> Split:
    """Split items into anchors and held-out ones, and the anchors into folds.

    The items (or groups) come into an order that depends on each name alone, and the first of them are held out:
    where some items are missing, at most as many others change sides.

    Parameters
    ----------
    keys : n unique item keys; with the same keys and `random_state` the split is the same on every machine.
    groups : n group names: whole groups are then held out (until at least the share `held_out` of the items
        is), and the folds of the anchors keep groups together too.
    held_out : share of the items to hold out, strictly between 0 and 1.
    n_folds : folds among the anchors.

    Raises
    ------
    ValueError : a share outside (0, 1), fewer than two folds, or too few items or groups to leave anchors in
        every fold.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie strictly between 0 and 1, got {held_out}")
    if n_folds < 2:
        raise ValueError(f"n_folds must be at least 2, got {n_folds}")
    if groups is not None and len(groups) != len(keys):
        raise ValueError(f"{len(groups)} groups for {len(keys)} keys: give each item a group")
    units = list(keys) if groups is None else sorted(set(groups))
    what = "items" if groups is None else "groups"
    if len(units) < n_folds + 1:
        raise ValueError(f"a split with {n_folds} folds needs at least {n_folds + 1} {what}, got {len(units)}")
    sizes = dict.fromkeys(units, 1)
    if groups is not None:
        sizes = dict.fromkeys(units, 0)
        for group in groups:
            sizes[group] += 1
    part: dict[str, int] = {}
    out, wanted = 0, max(1, round(held_out * len(keys)))
    remaining: list[str] = []
    for number in _order(units, random_state):
        if out < wanted:
            part[units[number]] = -1
            out += sizes[units[number]]
        else:
            remaining.append(units[number])
    if len(remaining) < n_folds:
        raise ValueError(
            f"holding out {held_out:.0%} by {what} leaves {len(remaining)} {what} of anchors for {n_folds} folds"
        )
    filled = [0] * n_folds
    for unit in remaining:
        fold = filled.index(min(filled))
        part[unit] = fold
        filled[fold] += sizes[unit]
    parts = np.array([part[unit] for unit in (keys if groups is None else groups)])
    anchors = np.flatnonzero(parts >= 0)
    return Split(anchors, np.flatnonzero(parts < 0), parts[anchors])


@dataclass(frozen=True, eq=False)
class Pair:
    """Two spaces on their common items: row i of `source_rows` and of `target_rows` is item `keys[i]`."""

    source: Space
    target: Space
    keys: Sequence[str]
    source_rows: np.ndarray
    target_rows: np.ndarray

    @classmethod
    def join(cls, source: Space, target: Space) -> Pair:
        """Join on the item key; the order is the source's.

        Raises ValueError, naming a key of each side, where there is no common item.
        """
        keys = [key for key in source.keys if key in target.position]
        if not keys:
            raise ValueError(
                f"'{source.name}' and '{target.name}' have no common items: the keys of one look like "
                f"'{source.keys[0]}', of the other like '{target.keys[0]}'"
            )
        rows = (np.array([space.position[key] for key in keys]) for space in (source, target))
        return cls(source, target, keys, *rows)

    def __len__(self) -> int:
        return len(self.keys)

    def split(
        self, groups: Mapping[str, str] | None = None, *, held_out: float = 0.3, n_folds: int = 5, random_state: int
    ) -> Split:
        """Split the common items; see `split`. `groups` maps each key to its group; ValueError where one has none."""
        missing = [] if groups is None else [key for key in self.keys if key not in groups]
        if missing:
            raise ValueError(f"{len(missing)} items have no group, the first is '{missing[0]}'")
        names = None if groups is None else [groups[key] for key in self.keys]
        return split(self.keys, names, held_out=held_out, n_folds=n_folds, random_state=random_state)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The paired vectors (len(rows), d_source) and (len(rows), d_target) of these items."""
        return self.source.take(self.source_rows[rows]), self.target.take(self.target_rows[rows])
