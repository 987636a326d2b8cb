"""Relative representations against cosines written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from align.maps.relative import Relative


@pytest.mark.parametrize("center", [True, False])
def test_is_the_cosine_to_every_anchor(planted, center: bool) -> None:
    X, Y = planted()
    new = np.random.default_rng(1).normal(size=(5, 8))
    found = Relative(center=center).fit(X, Y)
    mx, my = X.mean(0) * center, Y.mean(0) * center
    np.testing.assert_allclose(found.source_to_shared(new), cosine_similarity(new - mx, X - mx), atol=1e-12)
    np.testing.assert_allclose(found.target_to_shared(Y[:4]), cosine_similarity(Y[:4] - my, Y - my), atol=1e-12)
    np.testing.assert_array_equal(found.transform(new), found.source_to_shared(new))


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_a_turned_scaled_and_shifted_space_looks_the_same(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    X, turn = rng.normal(size=(15, 4)), np.linalg.qr(rng.normal(size=(4, 4)))[0]
    found = Relative().fit(X, factor * X @ turn + 3)
    np.testing.assert_allclose(found.source_to_shared(X), found.target_to_shared(factor * X @ turn + 3), atol=1e-9)


def test_draws_anchors_by_its_seed(planted) -> None:
    X, Y = planted()
    first, again, other = (Relative(n_anchors=7, random_state=seed).fit(X, Y) for seed in (0, 0, 1))
    assert first.transform(X).shape == (60, 7)
    np.testing.assert_array_equal(first.source_anchors_, again.source_anchors_)
    assert not np.array_equal(first.source_anchors_, other.source_anchors_)
    whole = Relative().fit(X, Y)
    rows = [np.flatnonzero((whole.source_anchors_ == a).all(1))[0] for a in first.source_anchors_]
    np.testing.assert_array_equal(whole.target_anchors_[rows], first.target_anchors_)


def test_anchors_without_direction_are_left_out(planted) -> None:
    X, Y = planted()
    X[3], Y[8] = 0, 0
    found = Relative(center=False).fit(X, Y)
    assert found.report_["n"] == 58
    assert found.report_["warnings"][0].startswith("2 anchors are zero")
    np.testing.assert_allclose(found.transform(X[:3]), cosine_similarity(X[:3], np.delete(X, [3, 8], 0)), atol=1e-12)
    np.testing.assert_array_equal(found.transform(X[3:4]), 0)


@pytest.mark.parametrize("n_anchors", [0, 61])
def test_refuses_a_number_of_anchors(planted, n_anchors: int) -> None:
    with pytest.raises(ValueError, match=f"n_anchors must be between 1 and the 60 .* got {n_anchors}"):
        Relative(n_anchors=n_anchors).fit(*planted())


def test_refuses_where_no_anchor_is_left() -> None:
    with pytest.raises(ValueError, match="between 1 and the 0 given that are not zero"):
        Relative(center=False).fit(np.array([[0.0, 0], [1, 2]]), np.array([[1.0, 2], [0, 0]]))
