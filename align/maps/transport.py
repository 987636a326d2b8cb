"""Optimal transport maps: a plan between point clouds by POT, and a map for new points made from it."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Self

import numpy as np
from array_api_compat import array_namespace

from align.maps.base import AffineMap, Array, Map, like
from align.maps.orthogonal import Procrustes
from align.moments import Moments
from align.onnx import DOUBLE, FLOAT


class OptimalTransport(Map):
    """Optimal transport from source to target points with the barycentric projection as the map.

    The spaces are brought into one by `init`; then the plan P minimises <P, C> (exact) or <P, C> - reg H(P)
    (entropic, Cuturi 2013) for the squared Euclidean cost C, scaled to a mean of one, with uniform weights. A
    training point goes to its barycentre, sum_j P_ij y_j / sum_j P_ij. For new points the entropic map is
    the same formula with the fitted dual potential (Pooladian and Niles-Weed 2021, eq. 5), which agrees with
    the barycentre on training points; the exact map moves a new point as its nearest training point moves
    (Ferradans et al. 2014).

    Parameters
    ----------
    reg : entropic regularisation, relative to the mean cost; 0 solves the exact problem.
    init : 'identity' compares coordinates as they are, padded with zeros: rows need not be paired, nor equal in
        number. 'procrustes' fits an orthogonal map first and needs paired rows.
    center : subtract each cloud's mean first, and add the targets' mean afterwards.
    max_points : larger clouds are thinned to this many points, at random: the plan is a dense matrix.
    max_iter, tol : of the entropic solver; tol is on the marginals.
    random_state : of the thinning.

    Attributes
    ----------
    n_iter_ : iterations of the solver (1 for the exact one, which does not say).
    plan_ is not kept; `report_` has marginal_error, plan_entropy (1 for a uniform plan, about
    log n / log n^2 = .5 for a permutation), iterations, converged, cost.
    """

    paired: ClassVar[bool] = False

    def __init__(
        self,
        *,
        reg: float = 0.05,
        init: str = "identity",
        center: bool = True,
        max_points: int = 4000,
        max_iter: int = 2000,
        tol: float = 1e-6,
        random_state: int = 0,
    ) -> None:
        self.reg = reg
        self.init = init
        self.center = center
        self.max_points = max_points
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Array, Y: Array) -> Self:
        """Fit the plan between X (n, d_source) and Y (m, d_target); ValueError for what cannot be compared."""
        if self.init not in ("identity", "procrustes"):
            raise ValueError(f"init must be 'identity' or 'procrustes', got {self.init!r}")
        if self.reg < 0:
            raise ValueError(f"reg must not be negative, got {self.reg}")
        import ot  # here, because it takes seconds and few who import the maps transport anything

        X, Y = self._check_fit(X, Y)
        if self.init == "procrustes":
            if len(X) != len(Y):
                raise ValueError(f"init='procrustes' needs paired rows: X has {len(X)}, y has {len(Y)}; use 'identity'")
            first: AffineMap = Procrustes(center=self.center).fit(X, Y)
            self.matrix_ = first.matrix_
        else:
            self.matrix_ = np.eye(X.shape[1], Y.shape[1])
        rng = np.random.default_rng(self.random_state)
        X, Y = (Z if len(Z) <= self.max_points else Z[rng.choice(len(Z), self.max_points, False)] for Z in (X, Y))
        self.source_mean_ = X.mean(0, dtype=np.float64) * self.center
        self.target_mean_ = Y.mean(0, dtype=np.float64) * self.center
        moved = (X - self.source_mean_) @ self.matrix_
        self.targets_ = np.asarray(Y - self.target_mean_, np.float64)
        cost = ot.dist(moved, self.targets_)
        self.scale_ = float(cost.mean()) or 1.0
        a, b = ot.unif(len(moved)), ot.unif(len(self.targets_))
        if self.reg:
            plan, log = _quietly(
                ot.bregman.sinkhorn_log,
                a,
                b,
                cost / self.scale_,
                self.reg,
                numItermax=self.max_iter,
                stopThr=self.tol,
                log=True,
            )
            # POT updates the rows last: softmax(log_v - C / reg) along a row is then the plan's row, rescaled.
            self.potential_ = self.reg * log["log_v"]
            iterations, converged = int(log["niter"]) + 1, bool(log["err"][-1] <= self.tol)
        else:
            plan, log = _quietly(ot.emd, a, b, cost / self.scale_, numItermax=1_000_000, log=True)
            self.sources_ = moved
            self.moves_ = plan @ self.targets_ / plan.sum(1, keepdims=True) - moved
            iterations, converged = 1, log["warning"] is None
        self.n_iter_ = iterations
        self._fingerprint(moved, self.targets_)
        self.report_ = {
            "n": len(moved),
            "m": len(self.targets_),
            "cost": float((plan * cost).sum()),
            **plan_report(plan, a, b, converged, iterations),
        }
        return self

    def _source_to_shared(self, X: Array) -> Array:
        return like(self._barycentres(X), X) if isinstance(X, np.ndarray) else self._barycentres(X).to(X.dtype)

    def _barycentres(self, X: Array) -> Array:
        """Where X (n, d_source) goes, in float64: the exponent of small regularisations needs it."""
        xp = array_namespace(X)
        X = xp.astype(X, xp.float64)
        moved = (X - like(self.source_mean_, X)) @ like(self.matrix_, X)
        if not self.reg:
            points = like(self.sources_, X)
            nearest = xp.argmin(xp.sum(points**2, axis=1)[None, :] - 2 * moved @ points.T, axis=1)
            return moved + like(self.moves_, X)[nearest]
        points = like(self.targets_, X)
        # The squared norm of x shifts all scores of a row alike, and the softmax does not see it.
        scores = (2 * moved @ points.T - xp.sum(points**2, axis=1)[None, :]) / (self.scale_ * self.reg)
        scores = scores + like(self.potential_, X)[None, :] / self.reg
        weights = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
        return (weights / xp.sum(weights, axis=1, keepdims=True)) @ points

    def _transform(self, X: Array) -> Array:
        return self._source_to_shared(X) + like(self.target_mean_, X)

    def _target_to_shared(self, Y: Array) -> Array:
        return Y - like(self.target_mean_, Y)

    def _onnx(self, graph: Any, x: str) -> str:
        def constant(array: np.ndarray) -> str:
            return graph.constant(array, np.float64)

        # In double precision, like `_barycentres`.
        x = graph.node("Cast", x, to=DOUBLE)
        moved = graph.node("MatMul", graph.node("Sub", x, constant(self.source_mean_)), constant(self.matrix_))
        points = self.targets_ if self.reg else self.sources_
        unit = self.scale_ * self.reg if self.reg else 1.0
        shift = -(points**2).sum(1) / unit + (self.potential_ / self.reg if self.reg else 0.0)
        products = graph.node("MatMul", moved, constant(2 * points.T / unit))
        scores = graph.node("Add", products, constant(shift))
        if self.reg:
            mapped = graph.node("MatMul", graph.node("Softmax", scores, axis=1), constant(points))
        else:
            nearest = graph.node("ArgMax", scores, axis=1, keepdims=0)
            mapped = graph.node("Add", moved, graph.node("Gather", constant(self.moves_), nearest, axis=0))
        return graph.node("Cast", graph.node("Add", mapped, constant(self.target_mean_)), to=FLOAT)


class GromovWasserstein(AffineMap):
    """Gromov-Wasserstein for spaces without any pairs (Memoli 2011), and an orthogonal map made from its plan.

    The plan couples points so that the distances inside the source match those inside the target; no coordinates are
    compared, and the numbers of points may differ. It finds a true matching only between nearly isometric spaces; the
    report says how sure the plan is. New points are moved by the orthogonal Procrustes map from the
    source points to their barycentres.

    Parameters
    ----------
    reg : 0 solves by conditional gradient with exact inner problems; > 0 the entropic problem, relative to
        distances scaled to a mean of one.
    scale, center : of the Procrustes map.
    max_points : larger clouds are thinned to this many points, at random.
    max_iter, tol : of the solver.
    random_state : of the thinning.
    """

    paired: ClassVar[bool] = False

    def __init__(
        self,
        *,
        reg: float = 0.0,
        scale: bool = False,
        center: bool = True,
        max_points: int = 1000,
        max_iter: int = 200,
        tol: float = 1e-7,
        random_state: int = 0,
    ) -> None:
        self.reg = reg
        self.scale = scale
        self.center = center
        self.max_points = max_points
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Array, Y: Array) -> Self:
        """Fit on unpaired clouds X (n, d_source) and Y (m, d_target). Raises ValueError for constant clouds."""
        if self.reg < 0:
            raise ValueError(f"reg must not be negative, got {self.reg}")
        import ot  # here, because it takes seconds and few who import the maps transport anything

        X, Y = self._check_fit(X, Y)
        rng = np.random.default_rng(self.random_state)
        X, Y = (Z if len(Z) <= self.max_points else Z[rng.choice(len(Z), self.max_points, False)] for Z in (X, Y))
        distances = []
        for Z in (X, Y):
            D = ot.dist(np.asarray(Z, np.float64), metric="euclidean")
            distances.append(D / D.mean())
        a, b = ot.unif(len(X)), ot.unif(len(Y))
        if self.reg:
            plan, log = _quietly(
                ot.gromov.entropic_gromov_wasserstein,
                *distances,
                a,
                b,
                epsilon=self.reg,
                max_iter=self.max_iter,
                tol=self.tol,
                log=True,
            )
            # POT looks at the error at every tenth iteration, and stops there.
            iterations = min(self.max_iter, 10 * len(log["err"]) - 9)
            converged = bool(log["err"][-1] <= self.tol)
        else:
            plan, log = _quietly(
                ot.gromov.gromov_wasserstein,
                *distances,
                a,
                b,
                max_iter=self.max_iter,
                tol_rel=self.tol,
                tol_abs=self.tol,
                log=True,
            )
            iterations = max(1, len(log["loss"]) - 1)
            converged = iterations < self.max_iter
        if not np.isfinite(plan).all() or not np.all(plan.sum(1) > 0):
            raise ValueError(f"the entropic solver broke down with reg={self.reg}: use a larger one, or reg=0 (exact)")
        self.n_iter_ = iterations
        barycentres = plan @ Y / plan.sum(1, keepdims=True)
        self.fit_moments(Moments.of(np.asarray(X, np.float64), barycentres, center=self.center))
        self.report_ |= {
            "m": len(Y),
            "gw_distance": float(log["gw_dist"]),
            **plan_report(plan, a, b, converged, iterations),
        }
        return self

    def _solve(self, moments: Moments) -> None:
        inner = Procrustes(scale=self.scale, center=self.center)
        inner._solve(moments)
        self.matrix_, self.scale_, self.report_ = inner.matrix_, inner.scale_, inner.report_

    def _inverse_matrix(self) -> np.ndarray:
        return self.matrix_.T / self.scale_**2


def plan_report(plan: np.ndarray, a: np.ndarray, b: np.ndarray, converged: bool, iterations: int) -> dict[str, Any]:
    """How far to trust a plan: its marginals' error, its entropy relative to the independent plan, convergence."""
    error = float(max(np.abs(plan.sum(1) - a).max() / a.max(), np.abs(plan.sum(0) - b).max() / b.max()))
    mass = plan[plan > 0]
    entropy = float(-(mass * np.log(mass)).sum() / np.log(plan.size)) if plan.size > 1 else 0.0
    notes = []
    if not converged:
        notes.append(f"the solver stopped after {iterations} iterations without converging")
    if error > 0.01:
        notes.append(f"the plan misses its marginals by {error:.1%}: do not trust it")
    if entropy > 0.98:
        notes.append("the plan is nearly uniform: it matches nothing to anything")
    return {
        "marginal_error": error,
        "plan_entropy": entropy,
        "iterations": iterations,
        "converged": converged,
        "warnings": notes,
    }


def _quietly(solver: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a POT solver without its printed warnings: what they say is in the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return solver(*args, **kwargs)
