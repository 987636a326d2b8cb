"""Subspace maps: canonical correlation analysis, into the directions that both spaces share."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from align.maps.base import AffineMap, Array, like
from align.maps.linear import fold_numbers
from align.moments import Moments

REGULARISATIONS = (0.1, 0.3, 1.0, 3.0, 10.0)


class CCA(AffineMap):
    """Regularised canonical correlation analysis (Hotelling 1936; ridge form of Vinod 1976).

    Each space is whitened with its scatter plus a ridge, the whitened cross scatter is decomposed as
    L diag(rho) R^T, and both sides are led to the first k canonical directions, each weighted by rho ** power.
    `transform` goes on from there to the target space: it predicts the targets' canonical part and
    undoes their whitening.

    The ridge and k are chosen by exact K-fold cross-validation from the folds' sums alone: they maximise the
    mutual information of the first k pairs of directions, sum of -log(1 - r^2) / 2 over their correlations r
    on held-out folds (a wrong sign counts as loss), less 1 / (2 n) a direction, which is what chance gives.

    Parameters
    ----------
    n_components : k, or None to choose it.
    regularisation : the ridge, relative to each scatter's mean eigenvalue, or None to choose among
        0.1 to 10.
    power : of the canonical correlations that weight the shared directions.
    max_rank : principal directions kept of each space before; what is beyond them counts as noise.
    cv : number of folds.
    center : subtract the means first.
    random_state : of the folds' shuffle.

    Attributes
    ----------
    source_directions_, target_directions_ : (d_source, k), (d_target, k), weighted.
    correlations_ : (k,) canonical correlations on the anchors, shrunk by the ridge.
    regularisation_, n_components_ : the values used.
    """

    chosen: ClassVar[dict[str, str]] = {"n_components": "n_components_", "regularisation": "regularisation_"}

    def __init__(
        self,
        n_components: int | None = None,
        *,
        regularisation: float | None = None,
        power: float = 1.0,
        max_rank: int = 256,
        cv: int = 5,
        center: bool = True,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.regularisation = regularisation
        self.power = power
        self.max_rank = max_rank
        self.cv = cv
        self.center = center
        self.random_state = random_state

    def _folds(self, n: int) -> np.ndarray | None:
        if self.n_components is not None and self.regularisation is not None:
            return None
        return fold_numbers(n, self.cv, self.random_state)

    def _solve(self, moments: Moments) -> None:
        grid = REGULARISATIONS if self.regularisation is None else (self.regularisation,)
        if self.regularisation is not None and self.regularisation < 0:
            raise ValueError(f"regularisation must not be negative, got {self.regularisation}")
        d = max(moments.source.dimension, moments.target.dimension)
        if self.regularisation == 0 and moments.n <= d:
            raise ValueError(
                f"CCA without regularisation needs more anchors than dimensions, got {moments.n} for {d}: "
                "leave regularisation unset, or use procrustes"
            )
        if self.n_components is not None and not 1 <= self.n_components <= min(moments.cross.shape):
            raise ValueError(f"n_components must be between 1 and {min(moments.cross.shape)}, got {self.n_components}")
        self.regularisation_ = float(grid[0])
        chosen = self.n_components
        gain = None
        if len(grid) > 1 or chosen is None:
            if not moments.folds:
                raise ValueError("choosing the regularisation or n_components needs moments with folds")
            curves = np.cumsum(self._held_out_information(moments, grid), axis=1)
            if chosen is not None:
                best, width = int(np.argmax(curves[:, min(chosen, curves.shape[1]) - 1])), chosen
            else:
                best, width = (int(i) for i in np.unravel_index(np.argmax(curves), curves.shape))
                width += 1
            self.regularisation_, chosen = float(grid[best]), width
            gain = float(curves[best, min(width, curves.shape[1]) - 1])
        assert chosen is not None
        (values_x, Vx), (values_y, Vy), cross = self._principal(moments)
        Dx, Dy = self._whitening(moments, values_x, values_y, self.regularisation_)
        L, rho, R = np.linalg.svd(Dx[:, None] * cross * Dy, full_matrices=False)
        k = self.n_components_ = min(chosen, len(rho))
        self.correlations_ = rho[:k]
        weights = rho[:k] ** self.power
        A, B = Vx @ (Dx[:, None] * L[:, :k]), Vy @ (Dy[:, None] * R[:k].T)
        self.source_directions_ = moments.source.lift(A * weights)
        self.target_directions_ = moments.target.lift(B * weights)
        back_y = moments.target.lift(Vy @ (R[:k].T / Dy[:, None]))
        back_x = moments.source.lift(Vx @ (L[:, :k] / Dx[:, None]))
        self.matrix_ = moments.source.lift(A * rho[:k]) @ back_y.T
        self.inverse_ = moments.target.lift(B * rho[:k]) @ back_x.T
        self.report_ = {
            "n": moments.n,
            "n_components": k,
            "regularisation": self.regularisation_,
            "largest_correlation": float(rho[0]),
            "condition_number": float(Dx[0] / Dx[-1]),
            "warnings": [],
        }
        if gain is not None:
            self.report_["held_out_nats"] = gain
            if gain <= 0:
                self.report_["warnings"].append("no direction is shared on held-out folds: do not trust this map")

    def _principal(
        self, moments: Moments
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
        """The leading eigenpairs of each scatter, and the cross scatter in their coordinates."""
        sides = []
        for side in (moments.source, moments.target):
            values, vectors = side.eigh
            keep = slice(max(0, len(values) - self.max_rank), None)
            if values[-1] <= 0:
                raise ValueError("X or y is constant: all anchors are the same vector, nothing can be fitted")
            sides.append((values[keep], vectors[:, keep]))
        return sides[0], sides[1], sides[0][1].T @ moments.cross @ sides[1][1]

    @staticmethod
    def _whitening(
        moments: Moments, values_x: np.ndarray, values_y: np.ndarray, regularisation: float
    ) -> tuple[np.ndarray, np.ndarray]:
        def roots(values: np.ndarray, total: float, dimension: int) -> np.ndarray:
            ridge = max(regularisation * total / dimension, values[-1] * 1e-14)
            return 1 / np.sqrt(values + ridge)

        source, target = moments.source, moments.target
        return (
            roots(values_x, float(np.trace(source.scatter)), source.dimension),
            roots(values_y, float(np.trace(target.scatter)), target.dimension),
        )

    def _held_out_information(self, moments: Moments, grid: tuple[float, ...]) -> np.ndarray:
        """Nats an item (len(grid), K) that each canonical direction adds on held-out folds."""
        sums: list[list[np.ndarray]] = [[] for _ in grid]
        sides = zip(moments.rest, moments.held_out, moments.source.held_out, moments.target.held_out, strict=True)
        for rest, (of_rest, of_fold), (xx, _), (yy, _) in sides:
            values_x, values_y, Vy = rest.source.eigh[0], *rest.target.eigh
            if values_x[-1] <= 0 or values_y[-1] <= 0:
                raise ValueError("X or y is constant on the anchors of a fold: nothing can be fitted")
            p, q = min(self.max_rank, len(values_x)), min(self.max_rank, len(values_y))
            values_x, values_y, Vy = values_x[-p:], values_y[-q:], Vy[:, -q:]
            cross, xy = of_rest[-p:] @ Vy, of_fold[-p:] @ Vy
            xx, yy = xx[-p:, -p:], yy[-q:, -q:]
            for of_ridge, regularisation in zip(sums, grid, strict=True):
                Dx, Dy = self._whitening(rest, values_x, values_y, regularisation)
                L, _, R = np.linalg.svd(Dx[:, None] * cross * Dy, full_matrices=False)
                A, B = Dx[:, None] * L, Dy[:, None] * R.T
                of_ridge.append(np.stack([(A * (S @ B)).sum(0) for A, S, B in ((A, xx, A), (B, yy, B), (A, xy, B))]))
        width = min(pooled.shape[1] for of_ridge in sums for pooled in of_ridge)
        gains = np.empty((len(grid), width))
        for gain, of_ridge in zip(gains, sums, strict=True):
            uu, vv, uv = np.sum([pooled[:, :width] for pooled in of_ridge], axis=0)
            r = np.clip(uv / np.sqrt(np.maximum(uu * vv, np.finfo(float).tiny)), -0.9999, 0.9999)
            gain[:] = -np.sign(r) * np.log1p(-(r**2)) / 2 - 1 / (2 * moments.n)
        return gains

    def _source_to_shared(self, X: Array) -> Array:
        return (X - like(self.source_mean_, X)) @ like(self.source_directions_, X)

    def _target_to_shared(self, Y: Array) -> Array:
        return (Y - like(self.target_mean_, Y)) @ like(self.target_directions_, Y)

    def _transform(self, X: Array) -> Array:
        return (X - like(self.source_mean_, X)) @ like(self.matrix_, X) + like(self.target_mean_, X)

    def _inverse_matrix(self) -> np.ndarray:
        return self.inverse_
