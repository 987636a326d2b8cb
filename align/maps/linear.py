"""Linear maps: the padded identity (a baseline), least squares, and ridge with its whole path."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

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

    def _solve(self, moments: Moments) -> None:
        self.matrix_ = np.eye(moments.source.dimension, moments.target.dimension)
        self.report_ = {"n": moments.n}


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
        values, vectors = moments.source.eigh
        keep = values > values[-1] * self.rcond**2
        if not keep.any():
            raise ValueError("X is constant: all anchors are the same vector, nothing can be fitted")
        weights = vectors[:, keep] @ ((vectors[:, keep].T @ moments.cross) / values[keep, None])
        self.matrix_ = _lift(moments, weights)
        rank = int(keep.sum())
        self.report_ = {
            "n": moments.n,
            "rank": rank,
            "condition_number": float(np.sqrt(values[-1] / values[keep][0])),
            "explained_variance": _explained(moments, weights),
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
        values, vectors = moments.source.eigh
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
        weights = vectors @ ((vectors.T @ moments.cross) / (values + self.alpha_)[:, None])
        self.matrix_ = _lift(moments, weights)
        self.report_ = {
            "n": moments.n,
            "alpha": self.alpha_,
            "condition_number": float(np.sqrt((values[-1] + self.alpha_) / (values[0] + self.alpha_))),
            "explained_variance": _explained(moments, weights),
            "warnings": warnings,
        }
        if len(self.alphas_) > 1:
            total = np.trace(moments.target.scatter) / moments.n
            self.report_["cv_explained_variance"] = float(1 - self.cv_errors_[best] / total)

    def _cross_validate(self, moments: Moments) -> np.ndarray:
        errors = np.zeros(len(self.alphas_))
        for fold, rest in zip(moments.folds, moments.rest, strict=True):
            values, vectors = rest.source.eigh
            # The fold's sums about the mean of the rest, which is what the fitted intercept subtracts.
            x, y = fold.source.mean - rest.source.mean, fold.target.mean - rest.target.mean
            scatter = fold.source.scatter + fold.n * np.outer(x, x)
            cross = fold.cross + fold.n * np.outer(x, y)
            total = np.trace(fold.target.scatter) + fold.n * (y @ y)
            P = vectors.T @ rest.cross
            linear = np.einsum("ij,ij->i", P, vectors.T @ cross)
            quadratic = (vectors.T @ scatter @ vectors) * (P @ P.T)
            for i, alpha in enumerate(self.alphas_):
                shrink = 1 / (values + alpha)
                errors[i] += total - 2 * shrink @ linear + shrink @ quadratic @ shrink
        return errors / moments.n


def fold_numbers(n: int, folds: int, random_state: int) -> np.ndarray:
    """A shuffled fold number in 0..folds-1 for each of n items, sizes equal to within one."""
    if not 2 <= folds <= n:
        raise ValueError(
            f"cv must be between 2 and the number of anchors ({n}), got {folds}: "
            "give more anchors, or fix what is chosen (alphas, n_components and regularisation)"
        )
    return np.random.default_rng(random_state).permutation(np.arange(n) % folds)


def _lift(moments: Moments, weights: np.ndarray) -> np.ndarray:
    """Weights (r_source, r_target) in the spaces' own coordinates, (d_source, d_target)."""
    return moments.source.lift(moments.target.lift(weights.T).T)


def _explained(moments: Moments, weights: np.ndarray) -> float:
    """Share of the targets' variance that the fitted map explains on its anchors."""
    total = np.trace(moments.target.scatter)
    fit = 2 * np.sum(weights * moments.cross) - np.sum(weights * (moments.source.scatter @ weights))
    return float(fit / total) if total > 0 else 0.0
