"""Steps against scikit-learn and the definition of whitening."""

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler, normalize

from align.preprocess import STEPS, Center, Standardize, Unit, Whiten


@pytest.fixture
def X() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5)) + 3


def test_center_and_standardize_and_unit_are_sklearns(X: np.ndarray) -> None:
    np.testing.assert_allclose(Center().fit_transform(X), X - X.mean(0))
    X[:, 2] = 0.1
    np.testing.assert_allclose(Standardize().fit_transform(X), StandardScaler().fit_transform(X), atol=1e-9)
    X[4] = 0
    np.testing.assert_allclose(Unit().fit_transform(X), normalize(X))


@pytest.mark.parametrize("shrinkage", [0.0, 0.2, 1.0])
def test_whiten_undoes_the_shrunk_covariance(X: np.ndarray, shrinkage: float) -> None:
    S = np.cov(X.T, ddof=0)
    S = (1 - shrinkage) * S + shrinkage * np.trace(S) / 5 * np.eye(5)
    step = Whiten(shrinkage=shrinkage).fit(X)
    np.testing.assert_allclose(step.matrix_ @ S @ step.matrix_, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(step.matrix_, step.matrix_.T, atol=1e-12)
    if not shrinkage:
        np.testing.assert_allclose(np.cov(step.transform(X).T, ddof=0), np.eye(5), atol=1e-9)


@pytest.mark.parametrize("step", [Center(), Standardize(), Whiten(), Whiten(shrinkage=0.3)], ids=str)
def test_inverse_undoes(X: np.ndarray, step: Center) -> None:
    np.testing.assert_allclose(step.fit(X).inverse_transform(step.transform(X)), X, atol=1e-9)


def test_unit_has_no_inverse() -> None:
    assert not hasattr(Unit(), "inverse_transform")


def test_whiten_refuses(X: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"got n_samples = 4 for 5: set shrinkage .* or use Standardize"):
        Whiten().fit(X[:4])
    assert Whiten(shrinkage=0.1).fit(X[:4]).transform(X).shape == X.shape
    X[:, 1] = X[:, 0]
    with pytest.raises(ValueError, match="X does not fill its 5 dimensions"):
        Whiten().fit(X)
    with pytest.raises(ValueError, match="shrinkage must be between 0 and 1, got 2"):
        Whiten(shrinkage=2).fit(X)


def test_every_step_can_be_loaded_by_its_name() -> None:
    assert set(STEPS) == {"Center", "Standardize", "Unit", "Whiten"}
