"""Transport maps against POT called directly, log-domain Sinkhorn in ten lines, and planted matchings."""

import numpy as np
import ot
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from align.maps.orthogonal import Procrustes
from align.maps.transport import GromovWasserstein, OptimalTransport, plan_report


def clouds(n: int = 40, m: int = 40, d: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + 5, rng.normal(size=(m, d)) * 1.3 - 2


def textbook_plan(cost: np.ndarray, reg: float) -> np.ndarray:
    n, m = cost.shape
    f, g = np.zeros(n), np.zeros(m)
    for _ in range(3000):
        g = -reg * logsumexp((f[:, None] - cost) / reg - np.log(n), axis=0)
        f = -reg * logsumexp((g[None, :] - cost) / reg - np.log(m), axis=1)
    return np.exp((f[:, None] + g[None, :] - cost) / reg) / (n * m)


@pytest.mark.parametrize("reg", [0.05, 0.5])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (30, 45)])
def test_the_entropic_map_is_the_barycentre_on_training_points(n: int, m: int, reg: float) -> None:
    X, Y = clouds(n, m)
    found = OptimalTransport(reg=reg, tol=1e-12, max_iter=50_000).fit(X, Y)
    cost = ot.dist(X - X.mean(0), Y - Y.mean(0))
    plan = textbook_plan(cost / cost.mean(), reg)
    np.testing.assert_allclose(found.transform(X), plan @ Y / plan.sum(1, keepdims=True), atol=1e-6)
    direct = ot.sinkhorn(
        ot.unif(n), ot.unif(m), cost / cost.mean(), reg, method="sinkhorn_log", stopThr=1e-12, numItermax=50_000
    )
    np.testing.assert_allclose(found.transform(X), direct @ Y * n, atol=1e-6)
    assert found.report_["cost"] == pytest.approx((plan * cost).sum(), rel=1e-6)
    assert found.report_["plan_entropy"] == pytest.approx(
        -(plan * np.log(np.maximum(plan, 1e-300))).sum() / np.log(n * m), rel=1e-6
    )
    assert found.report_["converged"]
    assert found.report_["marginal_error"] < 1e-6


def test_the_exact_map_is_the_assignment() -> None:
    X, Y = clouds()
    found = OptimalTransport(reg=0).fit(X, Y)
    cost = ot.dist(X - X.mean(0), Y - Y.mean(0))
    rows, columns = linear_sum_assignment(cost)
    np.testing.assert_allclose(found.transform(X), Y[columns], atol=1e-9)
    assert found.report_["cost"] == pytest.approx(cost[rows, columns].mean())
    # Its plan is a permutation: half the entropy of the independent plan.
    assert found.report_["plan_entropy"] == pytest.approx(0.5)


def test_the_exact_map_moves_new_points_like_their_nearest() -> None:
    X, Y = clouds(30, 50)
    found = OptimalTransport(reg=0).fit(X, Y)
    new = X[7] + 1e-3
    np.testing.assert_allclose(found.transform(new[None]) - new, found.transform(X[7:8]) - X[7], atol=1e-9)
    plan = ot.emd(ot.unif(30), ot.unif(50), ot.dist(X - X.mean(0), Y - Y.mean(0)))
    np.testing.assert_allclose(found.transform(X), plan @ Y * 30, atol=1e-9)


def test_a_small_regularisation_comes_near_the_exact_map() -> None:
    X, Y = clouds()
    exact = OptimalTransport(reg=0).fit(X, Y).transform(X)
    gaps = [
        np.abs(OptimalTransport(reg=reg, max_iter=5000).fit(X, Y).transform(X) - exact).mean()
        for reg in (0.5, 0.05, 0.01)
    ]
    assert gaps[0] > gaps[1] > gaps[2]


@pytest.mark.parametrize("reg", [0.0, 0.05])
def test_identity_start_does_not_look_at_pairs(reg: float) -> None:
    X, Y = clouds()
    order = np.random.default_rng(1).permutation(40)
    first, second = OptimalTransport(reg=reg).fit(X, Y), OptimalTransport(reg=reg).fit(X, Y[order])
    np.testing.assert_allclose(first.transform(X), second.transform(X), atol=1e-6)


def test_procrustes_start_matches_rotated_clouds_and_needs_pairs() -> None:
    X, _ = clouds(d=6)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    found = OptimalTransport(reg=0, init="procrustes").fit(X, X @ turn + 1)
    np.testing.assert_allclose(found.transform(X), X @ turn + 1, atol=1e-8)
    with pytest.raises(ValueError, match="init='procrustes' needs paired rows: X has 40, y has 39; use 'identity'"):
        OptimalTransport(init="procrustes").fit(X, X[:39])


@pytest.mark.parametrize("cls", [OptimalTransport, GromovWasserstein])
def test_large_clouds_are_thinned_by_the_seed(cls: type) -> None:
    X, Y = clouds(60, 50)
    first, again, other = (cls(max_points=20, random_state=seed).fit(X, Y) for seed in (0, 0, 1))
    assert (first.report_["n"], first.report_["m"]) == (20, 20)
    np.testing.assert_array_equal(first.transform(X), again.transform(X))
    assert not np.allclose(first.transform(X), other.transform(X))


def test_says_when_it_stopped_early() -> None:
    report = OptimalTransport(reg=0.005, max_iter=3).fit(*clouds()).report_
    assert not report["converged"]
    assert report["iterations"] == 3
    assert any("stopped after 3 iterations" in warning for warning in report["warnings"])
    assert any("misses its marginals" in warning for warning in report["warnings"])


def test_plan_report_of_a_uniform_plan() -> None:
    report = plan_report(np.full((5, 4), 1 / 20), np.full(5, 0.2), np.full(4, 0.25), True, 1)
    assert report["plan_entropy"] == pytest.approx(1)
    assert report["marginal_error"] == pytest.approx(0)
    assert report["warnings"] == ["the plan is nearly uniform: it matches nothing to anything"]


@pytest.mark.parametrize("reg", [0.0, 0.002])
def test_gromov_wasserstein_finds_a_rotation_without_pairs(reg: float) -> None:
    rng = np.random.default_rng(0)
    # Far from symmetric, so that only one matching keeps the distances.
    X = rng.normal(size=(30, 3)) * [1, 3, 9] + rng.exponential(size=(30, 3)) * 5
    turn, order = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.permutation(30)
    Y = X @ turn + 4
    found = GromovWasserstein(reg=reg, max_iter=1000).fit(X, Y[order])
    np.testing.assert_allclose(found.transform(X), Y, atol=0.5 if reg else 1e-6)
    assert found.report_["gw_distance"] == pytest.approx(0, abs=1e-2 if reg else 1e-8)


def test_gromov_wasserstein_is_pots_plan_and_procrustes_on_it() -> None:
    X, Y = clouds(25, 35, 3)
    found = GromovWasserstein(scale=True).fit(X, Y)
    distances = [np.sqrt(((Z[:, None] - Z[None]) ** 2).sum(-1)) for Z in (X, Y)]
    plan, log = ot.gromov.gromov_wasserstein(
        *(D / D.mean() for D in distances), ot.unif(25), ot.unif(35), max_iter=200, tol_rel=1e-7, tol_abs=1e-7, log=True
    )
    expected = Procrustes(scale=True).fit(X, plan @ Y * 25)
    np.testing.assert_allclose(found.matrix_, expected.matrix_, atol=1e-8)
    assert found.report_["gw_distance"] == pytest.approx(float(log["gw_dist"]))
    np.testing.assert_allclose(found.inverse_transform(found.transform(X)), X, atol=1e-9)


def test_gromov_wasserstein_says_when_the_entropic_solver_breaks_down() -> None:
    with pytest.raises(ValueError, match="broke down with reg=1e-06: use a larger one"):
        GromovWasserstein(reg=1e-6).fit(*clouds())


@pytest.mark.parametrize("cls", [OptimalTransport, GromovWasserstein])
def test_refuses_a_negative_regularisation(cls: type) -> None:
    with pytest.raises(ValueError, match="reg must not be negative, got -1"):
        cls(reg=-1).fit(*clouds())


def test_refuses_an_unknown_start() -> None:
    with pytest.raises(ValueError, match="init must be 'identity' or 'procrustes', got 'random'"):
        OptimalTransport(init="random").fit(*clouds())
