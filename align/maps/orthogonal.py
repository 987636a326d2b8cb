"""Orthogonal maps: Procrustes, which keeps angles and, up to one scale, distances."""

from __future__ import annotations

import numpy as np

from align.maps.base import AffineMap
from align.moments import Moments


class Procrustes(AffineMap):
    """Orthogonal Procrustes: the W with orthonormal columns (or rows) that maximises trace(W^T X^T Y).

    With X^T Y = U S V^T (centred), W = U V^T (Schoenemann 1966). Where the dimensions differ, W is
    (d_source, d_target) with orthonormal columns if d_source >= d_target, orthonormal rows otherwise. In the
    second case, as between equal dimensions, W is also the nearest in least squares.

    Parameters
    ----------
    scale : also fit one factor by least squares, trace(S) / ||X W||^2.
    center : fit an intercept (the means).

    Attributes
    ----------
    scale_ : the factor, 1 where `scale` is False; it is part of `matrix_`.
    """

    def __init__(self, *, scale: bool = False, center: bool = True) -> None:
        self.scale = scale
        self.center = center

    def _solve(self, moments: Moments) -> None:
        source, target = moments.source, moments.target
        d = min(source.dimension, target.dimension)
        whole = min(moments.cross.shape) < d
        left, values, right = np.linalg.svd(moments.cross, full_matrices=whole)
        if values[0] <= 0:
            raise ValueError("X or y is constant: all anchors are the same vector, nothing can be fitted")
        m = len(values)
        inside = left[:, :m] @ right[:m]
        rotation = source.lift(target.lift(inside.T).T)
        if whole:
            # The directions that no anchor fills are completed to an orthonormal set, in some way.
            free_x = np.hstack([source.lift(left[:, m:]), source.complement])[:, : d - m]
            free_y = np.hstack([target.lift(right[m:].T), target.complement])[:, : d - m]
            rotation += free_x @ free_y.T
        # All of x is moved where no direction of the source is left out.
        kept = m == len(source.scatter)
        moved = float(np.trace(source.scatter) if kept else np.sum(inside * (source.scatter @ inside)))
        self.scale_ = float(values.sum() / moved) if self.scale else 1.0
        self.matrix_ = rotation * self.scale_
        fit = 2 * self.scale_ * values.sum() - self.scale_**2 * moved
        rank = int((values > values[0] * 1e-10).sum())
        self.report_ = {
            "n": moments.n,
            "rank": rank,
            "explained_variance": float(fit / np.trace(moments.target.scatter)),
            "warnings": [f"the anchors fix {rank} of {d} directions; the rest of the rotation is arbitrary"]
            * (rank < d),
        }

    def _inverse_matrix(self) -> np.ndarray:
        return self.matrix_.T / self.scale_**2
