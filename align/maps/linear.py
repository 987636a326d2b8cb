"""Linear maps: the padded identity (a baseline), least squares, and ridge with its whole path."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from align.estimator import Array
from align.maps.base import AffineMap
from align.moments import Moments


class Identity(AffineMap):
    """The baseline that learns nothing but the means: coordinates are copied, missing ones are zero.

    Parameters
    ----------
    center : subtract the source anchors' mean and add the targets'.
    """

    def __init__(self, *, center: bool = True) -> None:
        self.center = center

    def fit(self, X: Array, Y: Array) -> Self:
        """Take the means of X (n, d_source) and Y (n, d_target); no product of them is needed."""
        X, Y = self._check_fit(X, Y)
        self.source_mean_ = X.mean(0, dtype=np.float64) * self.center
        self.target_mean_ = Y.mean(0, dtype=np.float64) * self.center
        self._fingerprint(self.source_mean_, self.target_mean_)
        self.matrix_ = np.eye(X.shape[1], Y.shape[1])
        self.report_ = {"n": len(X), "warnings": []}
        return self

    def _solve(self, moments: Moments) -> None:
        self.matrix_ = np.eye(moments.source.dimension, moments.target.dimension)
        self.report_ = {"n": moments.n, "warnings": []}


class LeastSquares(AffineMap):
    """Least squares with an intercept: min over W, b of sum ||x W + b - y||^2, the W of least norm.

    With fewer anchors than dimensions it interpolates the anchors, noise and all: prefer `Ridge` there.

    Parameters
    ----------
    center : fit an intercept (the means); otherwise the map is linear.
    rcond : singular values of the centred anchors below rcond times the largest count as zero.
    """

    def __init__(self, *, center: bool = True, rcond: float = 1e-7) -> None:
        self.center = center
        self.rcond = rcond

    def _solve(self, moments: Moments) -> None:
        values, _ = moments.source.eigh
        keep = values > values[-1] * self.rcond**2
        if not keep.any():
            raise ValueError("X is constant: all anchors are the same vector, nothing can be fitted")
        shrink = np.where(keep, 1 / np.where(keep, values, 1), 0)
        self.matrix_ = _solution(moments, shrink)
        self.report_ = {
            "n": moments.n,
            "rank": int(keep.sum()),
            "condition_number": float(np.sqrt(values[-1] / values[keep][0])),
            "explained_variance": _explained(moments, shrink),
            "warnings": [
                f"{moments.n} anchors in {moments.source.dimension} dimensions: the fit interpolates; prefer ridge"
            ]
            * (moments.n <= moments.source.dimension),
        }


class Ridge(AffineMap):
    """Ridge regression with an unpenalised intercept, min sum ||x W + b - y||^2 + alpha ||W||^2.

    The whole path costs one eigendecomposition: with the scatter V S V^T, W(alpha) = V (S + alpha)^-1 V^T C. The
    penalty is chosen by exact K-fold cross-validation: each fold's sums are subtracted from the total, and a
    fold's error is a quadratic form in (S + alpha)^-1, so that the number of alphas is free.

    Parameters
    ----------
    alphas : penalties to choose from, or None for 25 of them, from 1e-5 to 1e3 times the mean eigenvalue of the
        scatter. A single number is used as it is.
    cv : number of folds.
    center : fit an intercept (the means); otherwise the map is linear.
    random_state : of the folds' shuffle.

    Attributes
    ----------
    alpha_ : the penalty used.
    alphas_ : (m,) the path's penalties, ascending.
    cv_errors_ : (m,) mean squared error a held-out item on the path, or absent where nothing was chosen.
    """

    chosen: ClassVar[dict[str, str]] = {"alphas": "alpha_"}

    def __init__(
        self,
        alphas: float | list[float] | None = None,
        *,
        cv: int = 5,
        center: bool = True,
        random_state: int = 0,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.center = center
        self.random_state = random_state

    def _folds(self, n: int) -> np.ndarray | None:
        if self.alphas is not None and np.ndim(self.alphas) == 0:
            return None
        return fold_numbers(n, self.cv, self.random_state)

    def _solve(self, moments: Moments) -> None:
        values, _ = moments.source.eigh
        if values[-1] <= 0:
            raise ValueError("X is constant: all anchors are the same vector, nothing can be fitted")
        if self.alphas is None:
            self.alphas_ = values.sum() / moments.source.dimension * np.logspace(-5, 3, 25)
        else:
            self.alphas_ = np.sort(np.atleast_1d(np.asarray(self.alphas, float)))
        if not len(self.alphas_) or not (self.alphas_ > 0).all():
            raise ValueError(f"alphas must be positive, got {self.alphas}; for no penalty use least_squares")
        best = 0
        warnings = []
        if len(self.alphas_) > 1:
            if not moments.folds:
                raise ValueError("choosing alpha needs moments with folds (or give one number as alphas)")
            self.cv_errors_ = self._cross_validate(moments)
            best = int(np.argmin(self.cv_errors_))
            if self.alphas is None and best in (0, len(self.alphas_) - 1):
                warnings.append("the best alpha lies at the end of the path")
        self.alpha_ = float(self.alphas_[best])
        shrink = 1 / (values + self.alpha_)
        self.matrix_ = _solution(moments, shrink)
        smallest = values[0] if len(values) == moments.source.dimension else 0.0
        self.report_ = {
            "n": moments.n,
            "alpha": self.alpha_,
            "condition_number": float(np.sqrt((values[-1] + self.alpha_) / (smallest + self.alpha_))),
            "explained_variance": _explained(moments, shrink),
            "warnings": warnings,
        }
        if len(self.alphas_) > 1:
            total = np.trace(moments.target.scatter) / moments.n
            self.report_["cv_explained_variance"] = float(1 - self.cv_errors_[best] / total)

    def _cross_validate(self, moments: Moments) -> np.ndarray:
        errors = np.zeros(len(self.alphas_))
        sides = zip(moments.folds, moments.rest, moments.held_out, moments.source.held_out, strict=True)
        for fold, rest, (of_rest, of_fold), (scatter, _) in sides:
            y = fold.target.mean - rest.target.mean
            total = np.trace(fold.target.scatter) + fold.n * (y @ y)
            linear = np.einsum("ij,ij->i", of_rest, of_fold)
            quadratic = scatter * (of_rest @ of_rest.T)
            shrink = 1 / (rest.source.eigh[0] + self.alphas_[:, None])
            errors += total - 2 * shrink @ linear + np.einsum("ai,ai->a", shrink @ quadratic, shrink)
        return errors / moments.n


def fold_numbers(n: int, folds: int, random_state: int) -> np.ndarray:
    """A shuffled fold number in 0..folds-1 for each of n items, sizes equal to within one."""
    if not 2 <= folds <= n:
        raise ValueError(
            f"cv must be between 2 and the number of anchors ({n}), got {folds}: "
            "give more anchors, or fix what is chosen (alphas, n_components and regularisation)"
        )
    return np.random.default_rng(random_state).permutation(np.arange(n) % folds)


def _solution(moments: Moments, shrink: np.ndarray) -> np.ndarray:
    """V diag(shrink) V^T C (d_source, d_target), with V the source's eigenvectors and C the cross scatter."""
    return moments.source.directions @ (shrink[:, None] * moments.projected)


def _explained(moments: Moments, shrink: np.ndarray) -> float:
    """Share of the targets' variance that this solution explains on its anchors."""
    total = float(np.trace(moments.target.scatter))
    power = np.sum(moments.projected**2, axis=1)
    fit = power @ (2 * shrink - moments.source.eigh[0] * shrink**2)
    return float(fit / total) if total > 0 else 0.0
