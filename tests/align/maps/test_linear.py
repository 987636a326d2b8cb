"""Linear maps against NumPy's least squares and scikit-learn's ridge on the same folds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV, PredefinedSplit

from align.maps.linear import Identity, LeastSquares, Ridge, fold_numbers
from align.moments import Moments

SHAPES = [(60, 8, 6), (60, 3, 9), (8, 8, 5), (12, 30, 7), (12, 5, 30), (12, 30, 40)]


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_least_squares_is_lstsq(planted, shape: tuple[int, int, int], center: bool) -> None:
    X, Y = planted(*shape)
    mx, my = X.mean(0) * center, Y.mean(0) * center
    expected = np.linalg.lstsq(X - mx, Y - my, rcond=None)[0]
    found = LeastSquares(center=center).fit(X, Y)
    np.testing.assert_allclose(found.matrix_, expected, atol=1e-7)
    np.testing.assert_allclose(found.transform(X), (X - mx) @ expected + my, atol=1e-6)
    residual = Y - found.transform(X)
    explained = 1 - (residual**2).sum() / ((Y - my) ** 2).sum()
    assert found.report_["explained_variance"] == pytest.approx(explained, abs=1e-7)


def test_least_squares_of_dependent_columns_has_least_norm(planted) -> None:
    X, Y = planted(80, 6, 4)
    X = np.column_stack([X, X[:, 0] + X[:, 1], np.full(80, 3.0)])
    expected = np.linalg.lstsq(X - X.mean(0), Y - Y.mean(0), rcond=1e-7)[0]
    np.testing.assert_allclose(LeastSquares().fit(X, Y).matrix_, expected, atol=1e-7)
    low = LeastSquares(rcond=1e-5).fit(X.astype(np.float32), Y.astype(np.float32))
    np.testing.assert_allclose(low.matrix_, expected, atol=1e-4)
    assert low.report_["rank"] == 6


def test_least_squares_says_when_it_interpolates(planted) -> None:
    assert "interpolates" in LeastSquares().fit(*planted(6, 9, 4)).report_["warnings"][0]
    assert not LeastSquares().fit(*planted(60, 9, 4)).report_["warnings"]


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_is_sklearns_grid_search_on_the_same_folds(planted, shape: tuple[int, int, int], center: bool) -> None:
    X, Y = planted(*shape, noise=2.0)
    alphas = [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
    found = Ridge(alphas, cv=4, center=center, random_state=5).fit(X, Y)
    folds = fold_numbers(len(X), 4, 5)
    search = GridSearchCV(
        SklearnRidge(fit_intercept=center, solver="svd"),
        {"alpha": alphas},
        cv=PredefinedSplit(folds),
        scoring="neg_mean_squared_error",
    ).fit(X, Y)
    assert found.alpha_ == search.best_params_["alpha"]
    np.testing.assert_allclose(found.transform(X), search.predict(X), rtol=1e-6, atol=1e-6)
    # scikit-learn averages fold means; ours is a mean over items of squared lengths.
    errors = np.zeros(len(alphas))
    for i, alpha in enumerate(alphas):
        for fold in range(4):
            model = SklearnRidge(alpha=alpha, fit_intercept=center, solver="svd").fit(
                X[folds != fold], Y[folds != fold]
            )
            errors[i] += ((Y[folds == fold] - model.predict(X[folds == fold]).reshape(-1, Y.shape[1])) ** 2).sum()
    np.testing.assert_allclose(found.cv_errors_, errors / len(X), rtol=1e-6)
    assert found.report_["cv_explained_variance"] == pytest.approx(
        1 - found.cv_errors_.min() * len(X) / ((Y - Y.mean(0) * center) ** 2).sum()
    )


def test_ridge_default_path_and_its_warning(planted) -> None:
    X, Y = planted(60, 8, 6, noise=0.0)
    found = Ridge().fit(X, Y)
    mean = np.linalg.eigvalsh(np.cov(X.T, ddof=0) * 60).mean()
    np.testing.assert_allclose(found.alphas_, mean * np.logspace(-5, 3, 25))
    assert found.report_["warnings"] == ["the best alpha lies at the end of the path"]


def test_ridge_with_one_alpha_chooses_nothing(planted) -> None:
    X, Y = planted()
    found = Ridge(2.5).fit(X, Y)
    assert found.alpha_ == 2.5
    assert not hasattr(found, "cv_errors_")
    np.testing.assert_allclose(found.transform(X), SklearnRidge(alpha=2.5).fit(X, Y).predict(X))
    chosen = Ridge().fit(X, Y)
    assert chosen.settled().alphas == chosen.alpha_
    np.testing.assert_allclose(chosen.settled().fit(X, Y).matrix_, chosen.matrix_, atol=1e-12)


@pytest.mark.parametrize("alphas", [0.0, -1.0, [1.0, 0.0], []])
def test_ridge_refuses_alphas(planted, alphas: object) -> None:
    with pytest.raises(ValueError, match="alphas must be positive"):
        Ridge(alphas).fit(*planted())


def test_ridge_needs_folds_to_choose(planted) -> None:
    with pytest.raises(ValueError, match="needs moments with folds"):
        Ridge().fit_moments(Moments.of(*planted()))
    with pytest.raises(ValueError, match=r"number of anchors \(3\), got 5: give more anchors"):
        Ridge().fit(*planted(3))


@given(st.integers(0, 1000))
def test_ridge_turns_with_the_spaces(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(30, 5)), rng.normal(size=(30, 4))
    turn_x, turn_y = np.linalg.qr(rng.normal(size=(5, 5)))[0], np.linalg.qr(rng.normal(size=(4, 4)))[0]
    first, second = Ridge().fit(X, Y), Ridge().fit(X @ turn_x + 3, Y @ turn_y - 2)
    assert first.alpha_ == pytest.approx(second.alpha_)
    np.testing.assert_allclose(first.transform(X) @ turn_y - 2, second.transform(X @ turn_x + 3), atol=1e-9)


@pytest.mark.parametrize("cls", [LeastSquares, Ridge])
def test_a_planted_map_is_recovered_and_inverted(planted, cls: type) -> None:
    X, Y = planted(100, 5, 5, noise=0.0)
    found = cls().fit(X[:70], Y[:70])
    np.testing.assert_allclose(found.transform(X[70:]), Y[70:], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(found.inverse_transform(found.transform(X)), X, atol=1e-7)


def test_moments_of_shards_fit_the_same_map(planted) -> None:
    X, Y = planted(200)
    shards = Moments.accumulate([(X[:90], Y[:90])]) + Moments.accumulate([(X[90:], Y[90:])])
    for model in (LeastSquares(), Ridge(1.0), Identity()):
        np.testing.assert_allclose(model.fit_moments(shards).transform(X), model.fit(X, Y).transform(X), atol=1e-9)
    with pytest.raises(ValueError, match="moments taken with center=False"):
        LeastSquares(center=False).fit_moments(shards)


@pytest.mark.parametrize(("dx", "dy"), [(3, 5), (5, 3), (4, 4)])
def test_identity_copies_coordinates(planted, dx: int, dy: int) -> None:
    X, Y = planted(20, dx, dy)
    expected = np.zeros((20, dy))
    width = min(dx, dy)
    expected[:, :width] = (X - X.mean(0))[:, :width]
    np.testing.assert_allclose(Identity().fit(X, Y).transform(X), expected + Y.mean(0))
    np.testing.assert_allclose(Identity(center=False).fit(X, Y).transform(X)[:, :width], X[:, :width])


@given(st.integers(2, 50), st.integers(2, 10), st.integers(0, 100))
def test_fold_numbers_are_balanced(n: int, folds: int, seed: int) -> None:
    folds = min(folds, n)
    sizes = np.bincount(fold_numbers(n, folds, seed), minlength=folds)
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1
