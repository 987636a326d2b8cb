"""Procrustes against SciPy, and as the best among many orthogonal maps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from align.maps.orthogonal import Procrustes


def centred(Z: np.ndarray) -> np.ndarray:
    return Z - Z.mean(0)


@pytest.mark.parametrize("center", [True, False])
def test_is_scipys(planted, center: bool) -> None:
    X, Y = planted(50, 7, 7)
    x, y = (centred(X), centred(Y)) if center else (X, Y)
    rotation, trace = orthogonal_procrustes(x, y)
    found = Procrustes(center=center).fit(X, Y)
    np.testing.assert_allclose(found.matrix_, rotation, atol=1e-9)
    scaled = Procrustes(scale=True, center=center).fit(X, Y)
    assert scaled.scale_ == pytest.approx(trace / (x**2).sum())
    np.testing.assert_allclose(scaled.matrix_, rotation * scaled.scale_, atol=1e-9)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(2, 30), st.booleans(), st.integers(0, 1000))
def test_orthonormal_whatever_the_shapes(dx: int, dy: int, n: int, scale: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = Procrustes(scale=scale).fit(rng.normal(size=(n, dx)), rng.normal(size=(n, dy)))
    W = found.matrix_ / found.scale_
    gram = W @ W.T if dx <= dy else W.T @ W
    np.testing.assert_allclose(gram, np.eye(min(dx, dy)), atol=1e-9)


@pytest.mark.parametrize(("dx", "dy", "n"), [(6, 4, 40), (4, 6, 40), (5, 5, 40), (9, 12, 6), (12, 9, 6)])
@pytest.mark.parametrize("scale", [False, True])
def test_no_other_orthonormal_map_aligns_better(planted, dx: int, dy: int, n: int, scale: bool) -> None:
    X, Y = planted(n, dx, dy)
    x, y = centred(X), centred(Y)
    found = Procrustes(scale=scale).fit(X, Y)
    W = found.matrix_ / found.scale_
    best = np.trace(W.T @ x.T @ y)
    rng = np.random.default_rng(0)
    for size in np.logspace(-3, 1, 60):
        U, _, V = np.linalg.svd(W + size * rng.normal(size=W.shape), full_matrices=False)
        assert np.trace((U @ V).T @ x.T @ y) <= best * (1 + 1e-12)
    if scale:
        errors = [((s * x @ W - y) ** 2).sum() for s in found.scale_ * np.array([0.99, 1, 1.01])]
        assert errors[1] == min(errors)
    explained = 1 - ((Y - found.transform(X)) ** 2).sum() / (y**2).sum()
    assert found.report_["explained_variance"] == pytest.approx(explained)


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_a_planted_similarity_is_recovered_and_inverted(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    X, turn = rng.normal(size=(20, 5)), np.linalg.qr(rng.normal(size=(5, 5)))[0]
    Y = factor * X @ turn + rng.normal(size=5)
    found = Procrustes(scale=True).fit(X, Y)
    assert found.scale_ == pytest.approx(factor)
    np.testing.assert_allclose(found.transform(X), Y, atol=1e-8)
    np.testing.assert_allclose(found.inverse_transform(Y), X, atol=1e-8)
    back = Procrustes(scale=True).fit(Y, X)
    np.testing.assert_allclose(back.transform(Y), found.inverse_transform(Y), atol=1e-8)


@given(st.integers(0, 1000))
def test_turns_with_the_spaces(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(30, 5)), rng.normal(size=(30, 5))
    A, B = (np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(2))
    first, second = Procrustes().fit(X, Y).matrix_, Procrustes().fit(X @ A, Y @ B).matrix_
    np.testing.assert_allclose(second, A.T @ first @ B, atol=1e-8)


def test_says_how_much_of_the_rotation_is_arbitrary(planted) -> None:
    report = Procrustes().fit(*planted(5, 9, 9)).report_
    assert report["rank"] == 4
    assert report["warnings"] == ["the anchors fix 4 of 9 directions; the rest of the rotation is arbitrary"]
    assert not Procrustes().fit(*planted(50, 9, 9)).report_["warnings"]
