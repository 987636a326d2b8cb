"""CCA against the generalised eigenproblem, scikit-learn, and folds refitted from scratch."""

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.cross_decomposition import CCA as SklearnCCA

from align.maps.linear import fold_numbers
from align.maps.subspace import CCA, REGULARISATIONS


def shared_factors(n: int = 300, dx: int = 6, dy: int = 5, k: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, k))
    X = Z @ rng.normal(size=(k, dx)) + rng.normal(size=(n, dx))
    return X, Z @ rng.normal(size=(k, dy)) + rng.normal(size=(n, dy)) + 7


def textbook(X: np.ndarray, Y: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlations and unit-variance directions of ridge CCA by one generalised eigenproblem."""
    x, y = X - X.mean(0), Y - Y.mean(0)
    Sx, Sy, C = x.T @ x, y.T @ y, x.T @ y
    Sx = Sx + ridge * np.trace(Sx) / len(Sx) * np.eye(len(Sx))
    Sy = Sy + ridge * np.trace(Sy) / len(Sy) * np.eye(len(Sy))
    values, A = eigh(C @ np.linalg.solve(Sy, C.T), Sx)
    rho, A = np.sqrt(np.maximum(values[::-1], 0)), A[:, ::-1]
    k = min(X.shape[1], Y.shape[1])
    return rho[:k], A[:, :k], np.linalg.solve(Sy, C.T @ A[:, :k]) / rho[:k]


def same_up_to_sign(a: np.ndarray, b: np.ndarray) -> None:
    signs = np.sign((a * b).sum(0))
    np.testing.assert_allclose(a, b * signs, atol=1e-7)


@pytest.mark.parametrize("ridge", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize(("dx", "dy"), [(6, 5), (4, 6)])
def test_is_the_textbook_eigenproblem(ridge: float, power: float, dx: int, dy: int) -> None:
    X, Y = shared_factors(dx=dx, dy=dy)
    found = CCA(3, regularisation=ridge, power=power).fit(X, Y)
    rho, A, B = textbook(X, Y, ridge)
    np.testing.assert_allclose(found.correlations_, rho[:3], atol=1e-9)
    same_up_to_sign(found.source_directions_, A[:, :3] * rho[:3] ** power)
    same_up_to_sign(found.target_directions_, B[:, :3] * rho[:3] ** power)
    np.testing.assert_allclose(
        np.sign((found.source_directions_ * A[:, :3]).sum(0)), np.sign((found.target_directions_ * B[:, :3]).sum(0))
    )


def test_correlations_are_sklearns() -> None:
    X, Y = shared_factors()
    u, v = SklearnCCA(2, scale=False, max_iter=5000, tol=1e-12).fit(X, Y).transform(X, Y)
    expected = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(2)]
    np.testing.assert_allclose(CCA(2, regularisation=0.0).fit(X, Y).correlations_, expected, atol=1e-6)


def test_transform_at_full_rank_without_ridge_is_least_squares() -> None:
    X, Y = shared_factors()
    found = CCA(5, regularisation=0.0).fit(X, Y)
    expected = np.linalg.lstsq(X - X.mean(0), Y - Y.mean(0), rcond=None)[0]
    np.testing.assert_allclose(found.matrix_, expected, atol=1e-9)
    back = np.linalg.lstsq(Y - Y.mean(0), X - X.mean(0), rcond=None)[0]
    np.testing.assert_allclose(found.inverse_transform(Y), (Y - Y.mean(0)) @ back + X.mean(0), atol=1e-8)


def test_few_anchors_in_their_span_give_the_same_as_in_full() -> None:
    X, Y = shared_factors(n=15, dx=30, dy=20)
    found = CCA(4, regularisation=1.0).fit(X, Y)
    rho, A, B = textbook(X, Y, 1.0)
    np.testing.assert_allclose(found.correlations_, rho[:4], atol=1e-8)
    same_up_to_sign(found.source_directions_, A[:, :4] * rho[:4])
    same_up_to_sign(found.target_directions_, B[:, :4] * rho[:4])


def test_choice_is_by_information_on_refitted_folds() -> None:
    X, Y = shared_factors(n=120)
    found = CCA(cv=4, random_state=3).fit(X, Y)
    folds = fold_numbers(120, 4, 3)
    curves = []
    for ridge in REGULARISATIONS:
        uu = vv = uv = 0
        for fold in range(4):
            rest, out = folds != fold, folds == fold
            _, A, B = textbook(X[rest], Y[rest], ridge)
            u, v = (X[out] - X[rest].mean(0)) @ A, (Y[out] - Y[rest].mean(0)) @ B
            uu, vv, uv = uu + (u**2).sum(0), vv + (v**2).sum(0), uv + (u * v).sum(0)
        r = uv / np.sqrt(uu * vv)
        curves.append(np.cumsum(-np.sign(r) * np.log(1 - r**2) / 2 - 1 / 240))
    best, width = np.unravel_index(np.argmax(curves), np.shape(curves))
    assert found.regularisation_ == REGULARISATIONS[best]
    assert found.n_components_ == width + 1
    assert found.report_["held_out_nats"] == pytest.approx(np.max(curves))
    fixed = found.settled()
    assert (fixed.n_components, fixed.regularisation) == (found.n_components_, found.regularisation_)
    np.testing.assert_allclose(fixed.fit(X, Y).matrix_, found.matrix_, atol=1e-12)


def test_finds_the_number_of_shared_directions() -> None:
    X, Y = shared_factors(n=3000, dx=12, dy=10, k=3)
    assert CCA().fit(X, Y).n_components_ in (3, 4)


def test_warns_where_nothing_is_shared() -> None:
    rng = np.random.default_rng(0)
    gains = [CCA(1).fit(rng.normal(size=(60, 5)), rng.normal(size=(60, 5))).report_ for _ in range(10)]
    assert sum(bool(report["warnings"]) for report in gains) >= 5
    assert all(bool(report["warnings"]) == (report["held_out_nats"] <= 0) for report in gains)
    assert not CCA().fit(*shared_factors()).report_["warnings"]


def test_max_rank_works_on_principal_directions() -> None:
    X, Y = shared_factors(dx=10, dy=9)
    found = CCA(3, regularisation=0.5, max_rank=4).fit(X, Y)
    Vx, Vy = (np.linalg.svd(Z - Z.mean(0), full_matrices=False)[2][:4].T for Z in (X, Y))
    for directions, V in ((found.source_directions_, Vx), (found.target_directions_, Vy)):
        np.testing.assert_allclose(V @ (V.T @ directions), directions, atol=1e-9)


def test_refusals() -> None:
    X, Y = shared_factors(n=20, dx=6, dy=30)
    with pytest.raises(ValueError, match=r"needs more anchors than dimensions, got 20 for 30: .*use procrustes"):
        CCA(2, regularisation=0.0).fit(X, Y)
    with pytest.raises(ValueError, match="regularisation must not be negative"):
        CCA(2, regularisation=-1.0).fit(X, Y)
    with pytest.raises(ValueError, match="n_components must be between 1 and 6, got 7"):
        CCA(7, regularisation=1.0).fit(X, Y)
