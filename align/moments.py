"""The one pass of sums that every closed-form map is fitted from, with exact cross-validation by subtraction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.linalg

ROWS = 8192
"""Rows that are converted to float64 at once."""


@dataclass(frozen=True, eq=False)
class Sums:
    """What is kept of one space: the number of items, their mean and their scatter about it.

    Sums of disjoint items add; a part is taken away by subtraction (Chan, Golub and LeVeque 1983, eq. 1.5b,
    for pairwise updating of sums of squares).

    Attributes
    ----------
    n : number of items.
    mean : (r,) float64, in the coordinates of `basis`.
    scatter : (r, r) float64, the sum over items of (x - mean)(x - mean)^T.
    basis : (d, r) with orthonormal columns that span the items, where there are fewer items than
        dimensions; None where coordinates are the space's own (r = d). Solutions that lie in the span of
        the items (ridge, least norm, CCA) are the same in either coordinates, and far cheaper in the small ones.
    origin : (d,), the point that was subtracted before; the mean in the space's own coordinates is
        origin + basis @ mean.
    diagonal : whether the coordinates are the scatter's own axes, so that it is diagonal, ascending.
    centred : False for sums taken about zero instead of the mean (`mean` and `origin` are then zero), for
        maps without an intercept.
    folds : the same of each cross-validation fold's items.
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray
    origin: np.ndarray
    basis: np.ndarray | None = None
    centred: bool = True
    folds: tuple[Sums, ...] = ()
    diagonal: bool = False

    @property
    def dimension(self) -> int:
        """d, of the space's own coordinates."""
        return len(self.origin)

    @property
    def center(self) -> np.ndarray:
        """The mean (d,) in the space's own coordinates."""
        return self.origin + (self.mean if self.basis is None else self.basis @ self.mean)

    def lift(self, matrix: np.ndarray) -> np.ndarray:
        """Rows in these coordinates (r, m) to rows in the space's own (d, m)."""
        return matrix if self.basis is None else self.basis @ matrix

    def _step(self, other: Sums) -> np.ndarray:
        """From this mean to the other's, in these coordinates: origins may differ, bases may not."""
        if self.centred != other.centred:
            raise ValueError("sums about the mean and sums about zero do not add up: give both the same `center`")
        if self.dimension != other.dimension:
            raise ValueError(f"sums of {self.dimension} and of {other.dimension} dimensions do not add up")
        if self.basis is not other.basis:
            raise ValueError(
                "these sums were taken in the span of fewer items than dimensions, each in its own: "
                "take them from one call, or by `Moments.accumulate`"
            )
        step: np.ndarray = other.mean - self.mean
        return step if self.basis is not None else step + (other.origin - self.origin)

    def __add__(self, other: Sums) -> Sums:
        n = self.n + other.n
        step = self._step(other)
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.n * other.n / n)
        return Sums(n, self.mean + step * (other.n / n), scatter, self.origin, self.basis, self.centred)

    def __sub__(self, part: Sums) -> Sums:
        n = self.n - part.n
        if n < 1:
            raise ValueError(f"cannot take {part.n} items away from {self.n}: nothing would be left")
        step = -self._step(part) * (self.n / n)
        scatter = self.scatter - part.scatter - np.outer(step, step) * (n * part.n / self.n)
        mean = self.mean + step * (part.n / self.n)
        return Sums(n, mean, scatter, self.origin, self.basis, self.centred)

    @cached_property
    def rest(self) -> tuple[Sums, ...]:
        """For each fold, the sums of all items but the fold's."""
        return tuple(self - fold for fold in self.folds)

    @cached_property
    def eigh(self) -> tuple[np.ndarray, np.ndarray]:
        """The scatter's eigenvalues (k,), ascending, and eigenvectors (r, k) as columns.

        Directions without any spread (to rounding) are left out, but at least one is kept: no cross scatter reaches
        them, so nothing that is fitted from sums depends on them.
        """
        if self.diagonal:
            return np.diag(self.scatter).copy(), np.eye(len(self.scatter))
        values, vectors = np.linalg.eigh(self.scatter)
        first = int(np.searchsorted(values, max(values[-1], 0) * len(values) * np.finfo(np.float64).eps))
        first = min(first, len(values) - 1)
        return np.maximum(values[first:], 0), np.ascontiguousarray(vectors[:, first:])

    @cached_property
    def directions(self) -> np.ndarray:
        """The eigenvectors (d, k) in the space's own coordinates."""
        return self.basis if self.diagonal and self.basis is not None else self.lift(self.eigh[1])

    @cached_property
    def complement(self) -> np.ndarray:
        """An orthonormal basis (d, d - r) of what `basis` does not span."""
        if self.basis is None:
            return np.empty((self.dimension, 0))
        whole, _ = scipy.linalg.qr(self.basis, mode="full")
        return whole[:, self.basis.shape[1] :]

    @cached_property
    def held_out(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """For each fold, its scatter about the rest's mean, in the rest's eigenvectors (k, k), and the step (r,) there.

        The step leads from the rest's mean to the fold's.
        """
        made = []
        for fold, rest in zip(self.folds, self.rest, strict=True):
            vectors, step = rest.eigh[1], fold.mean - rest.mean
            along = vectors.T @ step
            made.append((vectors.T @ fold.scatter @ vectors + fold.n * np.outer(along, along), step))
        return tuple(made)


@dataclass(frozen=True, eq=False)
class Moments:
    """The sums of a pair: those of each space, and the cross scatter between them.

    Attributes
    ----------
    source, target : sums of the same items in each space. They may be shared by many pairs, and so are
        then the eigendecompositions that they cache.
    cross : (r_source, r_target) float64, the sum over items of (x - mean)(y - mean)^T.
    folds : the same of each cross-validation fold's items.
    """

    source: Sums
    target: Sums
    cross: np.ndarray
    folds: tuple[Moments, ...] = ()

    @property
    def n(self) -> int:
        return self.source.n

    def __add__(self, other: Moments) -> Moments:
        source, target = self.source + other.source, self.target + other.target
        step = np.outer(self.source._step(other.source), self.target._step(other.target))
        return Moments(source, target, self.cross + other.cross + step * (self.n * other.n / source.n))

    def __sub__(self, part: Moments) -> Moments:
        return self._without(part, self.source - part.source, self.target - part.target)

    def _without(self, part: Moments, source: Sums, target: Sums) -> Moments:
        step = np.outer(self.source._step(part.source), self.target._step(part.target))
        return Moments(source, target, self.cross - part.cross - step * (self.n * part.n / source.n))

    @cached_property
    def rest(self) -> tuple[Moments, ...]:
        """For each fold, the moments of all items but the fold's."""
        return tuple(
            self._without(fold, source, target)
            for fold, source, target in zip(self.folds, self.source.rest, self.target.rest, strict=True)
        )

    @cached_property
    def projected(self) -> np.ndarray:
        """The cross scatter seen from the source's eigenvectors, in the target's own coordinates (k, d_target)."""
        seen = self.cross if self.source.diagonal else self.source.eigh[1].T @ self.cross
        return self.target.lift(seen.T).T

    @cached_property
    def held_out(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """For each fold, seen from the source's eigenvectors over the rest: cross scatter of the rest, and of the fold.

        Both are (k, r_target); the fold's is about the rest's means.
        """
        made = []
        sides = zip(self.folds, self.rest, self.source.held_out, self.target.held_out, strict=True)
        for fold, rest, (_, x), (_, y) in sides:
            vectors = rest.source.eigh[1].T
            made.append((vectors @ rest.cross, vectors @ fold.cross + fold.n * np.outer(vectors @ x, y)))
        return tuple(made)

    def swap(self) -> Moments:
        """The same pair with source and target exchanged; nothing is computed again."""
        return Moments(self.target, self.source, self.cross.T, tuple(fold.swap() for fold in self.folds))

    @classmethod
    def of(cls, X: np.ndarray, Y: np.ndarray, folds: np.ndarray | None = None, *, center: bool = True) -> Moments:
        """The moments of paired rows X (n, d_source) and Y (n, d_target), with one set a fold where given."""
        return Points.of(X, folds, center=center).with_target(Points.of(Y, folds, center=center))

    @classmethod
    def accumulate(cls, blocks: Iterable[tuple[np.ndarray, np.ndarray]], *, center: bool = True) -> Moments:
        """The moments of a stream of paired blocks ((rows, d_source), (rows, d_target)), in constant memory.

        The first block's mean is subtracted in the blocks' own precision (float32 at least); products are taken and
        added up in float64. Blocks of some thousand rows keep the products fast.

        Raises ValueError where a block holds NaN or infinity, or where there is no row at all.
        """
        total: Moments | None = None
        origins: tuple[np.ndarray, np.ndarray] | None = None
        for X, Y in blocks:
            X, Y = _float(X), _float(Y)
            if len(X) != len(Y):
                raise ValueError(f"a block has {len(X)} source rows but {len(Y)} target rows")
            if not len(X):
                continue
            if origins is None:
                origins = (X.mean(0, dtype=np.float64) * center, Y.mean(0, dtype=np.float64) * center)
            source, x = _sums(X, origins[0], None, center)
            target, y = _sums(Y, origins[1], None, center)
            block = cls(source, target, _product(x, y))
            total = block if total is None else total + block
        if total is None:
            raise ValueError("moments of no rows at all: give at least one block")
        return total


def _float(X: np.ndarray) -> np.ndarray:
    return X if X.dtype in (np.float32, np.float64) else X.astype(np.float32)


def _sums(X: np.ndarray, origin: np.ndarray, basis: np.ndarray | None, center: bool) -> tuple[Sums, np.ndarray]:
    """The sums of rows X, which lie in the coordinates of `basis` unless it is None, and the centred rows."""
    x = X - origin.astype(X.dtype) if basis is None and center else X
    mean = x.mean(0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError("the vectors hold NaN or infinity")
    mean *= center
    x = x - mean.astype(x.dtype) if center else x
    return Sums(len(X), mean, _product(x, x), origin, basis, center), x


def _product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x^T y in float64, of blocks of rows: float32 products would drown the small eigenvalues in rounding."""
    if x.dtype == y.dtype == np.float64:
        out: np.ndarray = x.T @ y
        return out
    out = np.zeros((x.shape[1], y.shape[1]))
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        left = x[rows].astype(np.float64)
        # The same array on both sides lets NumPy take a symmetric product, at half the work.
        out += left.T @ (left if y is x else y[rows].astype(np.float64))
    return out


def _span(x: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The thin singular value decomposition of rows x (n, d), n <= d, without what is rounding in `dtype`.

    Singular values (k,), ascending, right vectors (d, k) and left vectors (n, k), from the n x n products.
    """
    values, left = np.linalg.eigh(x @ x.T)
    keep = values > max(values[-1], 0) * len(x) * np.finfo(np.float64).eps * 10
    if dtype == np.float32:
        keep &= values > values[-1] * np.finfo(np.float32).eps ** 2 * len(x)
    keep[-1] |= not keep.any()
    roots = np.sqrt(np.maximum(values[keep], np.finfo(np.float64).tiny))
    return roots, x.T @ (left[:, keep] / roots), left[:, keep]


@dataclass(frozen=True, eq=False)
class Points:
    """One space's anchors with their sums, ready to be paired with any other space's on the same items.

    Where there are fewer items than dimensions, points are kept in the coordinates of their own span.
    """

    sums: Sums
    parts: tuple[np.ndarray, ...]
    """Centred rows of each fold, or of all items where there are no folds."""

    @classmethod
    def of(cls, X: np.ndarray, folds: np.ndarray | None = None, *, center: bool = True) -> Points:
        """Sums of the rows X (n, d), float32 or float64, and of each fold; `folds` is (n,) integers from 0 or None.

        Raises ValueError for NaN, infinity, or an empty fold.
        """
        n, d = X.shape
        if not n:
            raise ValueError("moments of no rows at all")
        X = _float(X)
        origin, basis = X.mean(0, dtype=np.float64), None
        if not np.isfinite(origin).all():
            raise ValueError("the vectors hold NaN or infinity")
        origin *= center
        if n <= d:
            x = X - origin
            roots, basis, vectors = _span(x, X.dtype)
            X = vectors * roots
        if folds is None:
            sums, x = _sums(X, origin, basis, center)
            return cls(replace(sums, diagonal=basis is not None), (x,))
        counts = np.bincount(folds)
        if not counts.all():
            raise ValueError(f"fold {int(np.argmin(counts))} is empty: folds must be numbered from 0 without a gap")
        made = [_sums(X[folds == fold], origin, basis, center) for fold in range(len(counts))]
        total = made[0][0]
        for sums, _ in made[1:]:
            total = total + sums
        whole = replace(total, folds=tuple(sums for sums, _ in made), diagonal=basis is not None)
        for fold, rest in enumerate(whole.rest if basis is not None else ()):
            # The rest of the folds spans less still: its few items give the eigenvectors at a fraction of the cost.
            rows = X[folds != fold]
            roots, vectors, _ = _span(rows - rows.mean(0) if center else rows, X.dtype)
            rest.__dict__["eigh"] = roots**2, vectors
        return cls(whole, tuple(x for _, x in made))

    def with_target(self, target: Points) -> Moments:
        """The moments of this space and another on the same items, split into the same folds."""
        crosses = [_product(x, y) for x, y in zip(self.parts, target.parts, strict=True)]
        if not self.sums.folds:
            return Moments(self.sums, target.sums, crosses[0])
        folds = tuple(map(Moments, self.sums.folds, target.sums.folds, crosses))
        cross = np.zeros_like(crosses[0])
        for fold in folds:
            steps = fold.source.mean - self.sums.mean, fold.target.mean - target.sums.mean
            cross += fold.cross + fold.n * np.outer(*steps)
        return Moments(self.sums, target.sums, cross, folds)
