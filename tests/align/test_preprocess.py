"""Steps against scikit-learn, the definition of whitening, and each repair written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, rankdata
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from align.maps.compose import Chain
from align.maps.linear import Ridge
from align.measures.health import HEALTH, modality_gap
from align.preprocess import (
    STEPS,
    AllButTheTop,
    Center,
    ClusterIsotropy,
    CollapseGap,
    DropOutliers,
    NormalQuantiles,
    Standardize,
    Step,
    Unit,
    Whiten,
)


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
    assert set(STEPS) == {
        *("Center", "Standardize", "Unit", "Whiten"),
        *("AllButTheTop", "ClusterIsotropy", "DropOutliers", "CollapseGap", "NormalQuantiles"),
    }


# --- repairs


def clustered(n: int = 400, d: int = 16, clusters: int = 4, seed: int = 0) -> np.ndarray:
    """Off zero, each cluster stretched along a direction of its own."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, clusters, n)
    stretched = 4 * rng.normal(size=(n, 1)) * rng.normal(size=(clusters, d))[label]
    return 25 * rng.normal(size=(clusters, d))[label] + stretched + rng.normal(size=(n, d)) + 2


@pytest.mark.parametrize(("n", "n_components"), [(200, 1), (200, 5), (200, 0), (9, 3)])
def test_all_but_the_top_is_what_pca_leaves(n: int, n_components: int) -> None:
    X = clustered(n)
    pca = PCA(n_components).fit(X) if n_components else PCA(1).fit(X)
    expected = X - X.mean(0)
    if n_components:
        expected = expected - expected @ pca.components_.T @ pca.components_
    step = AllButTheTop(n_components).fit(X)
    np.testing.assert_allclose(step.transform(X), expected, atol=1e-8)
    np.testing.assert_allclose(step.components_ @ step.components_.T, np.eye(n_components), atol=1e-9)


def test_all_but_the_top_takes_one_of_a_hundred_dimensions_and_no_more_than_there_are() -> None:
    rng = np.random.default_rng(0)
    assert [len(AllButTheTop().fit(rng.normal(size=(20, d))).components_) for d in (1, 2, 99, 250)] == [0, 1, 1, 2]
    # Vectors on a line have one direction.
    line = rng.normal(size=(20, 1)) * np.arange(1, 6)
    assert AllButTheTop(3).fit(line).components_.shape == (1, 5)
    assert AllButTheTop(3).fit(np.ones((4, 5))).components_.shape == (0, 5)
    with pytest.raises(ValueError, match="n_components must be from 0 to 4, got 5 with n_features = 5"):
        AllButTheTop(5).fit(line)


def test_cluster_isotropy_is_pca_of_each_cluster() -> None:
    X, new = clustered(), clustered(seed=1)
    step = ClusterIsotropy(4, 2).fit(X)
    kmeans = KMeans(4, n_init=3, random_state=0).fit(X - X.mean(0))
    for rows, label in ((X, kmeans.labels_), (new, kmeans.predict(new - X.mean(0)))):
        found = step.transform(rows)
        for c in range(4):
            own = X[kmeans.labels_ == c]
            axes = PCA(2).fit(own).components_
            expected = rows[label == c] - own.mean(0)
            np.testing.assert_allclose(found[label == c], expected - expected @ axes.T @ axes, atol=1e-8)


def test_cluster_isotropy_of_few_vectors() -> None:
    X = clustered(30)
    assert ClusterIsotropy().fit(X).centers_.shape == (1, 16)
    assert ClusterIsotropy().fit(clustered(150)).centers_.shape == (3, 16)
    # Each vector its own cluster: nothing is left, and no direction found.
    np.testing.assert_allclose(ClusterIsotropy(30).fit_transform(X), 0, atol=1e-9)
    with pytest.raises(ValueError, match="n_clusters must be between 1 and 7, the different rows of X, got 8"):
        ClusterIsotropy(8).fit(np.repeat(X[:7], 3, axis=0))
    with pytest.raises(ValueError, match="n_components must be from 0 to 15, got 16"):
        ClusterIsotropy(n_components=16).fit(X)


def test_drop_outliers() -> None:
    X = np.random.default_rng(0).normal(size=(300, 40))
    X[:, [3, 17]] += np.array([5, -6])
    step = DropOutliers().fit(X)
    assert np.flatnonzero(step.kept_ == 0).tolist() == [3, 17]
    expected = X.copy()
    expected[:, [3, 17]] = 0
    np.testing.assert_array_equal(step.transform(X), expected)
    np.testing.assert_array_equal(DropOutliers(7).fit_transform(X), X)
    with pytest.raises(ValueError, match="threshold must be at least 1 standard deviation, got 0"):
        DropOutliers(0).fit(X)


def test_collapse_gap() -> None:
    rng = np.random.default_rng(0)
    X, Y = normalize(rng.normal(size=(300, 12)) + 1), normalize(rng.normal(size=(300, 12)) - 1)
    np.testing.assert_allclose(CollapseGap().fit_transform(X), normalize(X - X.mean(0)))
    assert modality_gap(X, Y).norm > 1
    assert modality_gap(CollapseGap().fit_transform(X), CollapseGap().fit_transform(Y)).norm < 0.1


@pytest.mark.parametrize("library", [np.asarray, torch.asarray])
def test_noise_is_for_training_only_and_the_same_each_time(library) -> None:
    X = library(normalize(np.random.default_rng(0).normal(size=(500, 12)) + 1).astype(np.float32))
    clean = CollapseGap().fit(X).transform(X)
    step = CollapseGap(noise=0.3, random_state=4)
    noisy = step.fit_transform(X)
    assert noisy.dtype == X.dtype
    np.testing.assert_array_equal(noisy, step.fit_transform(X))
    np.testing.assert_array_equal(step.transform(X), clean)
    drawn = np.random.default_rng(4).normal(scale=0.3, size=(500, 12))
    np.testing.assert_allclose(np.asarray(noisy) - np.asarray(clean), drawn, atol=1e-6)
    with pytest.raises(ValueError, match="noise must be a standard deviation, 0 or more, got -1"):
        CollapseGap(noise=-1).fit(X)


@given(st.integers(0, 10**6), st.integers(2, 80))
def test_normal_quantiles_with_as_many_as_items_are_scores_of_ranks(seed: int, n: int) -> None:
    X = np.random.default_rng(seed).normal(size=(n, 5)) ** 3
    expected = norm.ppf((rankdata(X, axis=0) - 0.5) / n)
    np.testing.assert_allclose(NormalQuantiles().fit_transform(X), normalize(expected), atol=1e-6)


def test_normal_quantiles_share_scores_among_ties() -> None:
    X = np.column_stack([np.repeat([3.0, 1.0, 2.0], 4), np.arange(12.0), np.full(12, 7.0)])
    by_rank = norm.ppf((np.arange(12) + 0.5) / 12)
    first = np.repeat([by_rank[8:].mean(), by_rank[:4].mean(), by_rank[4:8].mean()], 4)
    expected = np.column_stack([first, by_rank, np.zeros(12)])
    np.testing.assert_allclose(NormalQuantiles().fit_transform(X), normalize(expected), atol=1e-9)


def test_normal_quantiles_of_new_vectors_are_interpolated_and_bounded() -> None:
    X = np.random.default_rng(0).gamma(2.0, size=(5000, 3))
    step = NormalQuantiles(40).fit(X)
    new = np.random.default_rng(1).gamma(2.0, size=(50, 3)) * 2
    expected = np.column_stack([np.interp(new[:, j], step.quantiles_[:, j], step.scores_[:, j]) for j in range(3)])
    np.testing.assert_allclose(step.transform(new), normalize(expected), atol=1e-12)
    # Beyond what was seen all are the same.
    np.testing.assert_array_equal(step.transform(X.max(0)[None] + 1), step.transform(X.max(0)[None] + 9))
    with pytest.raises(ValueError, match="n_quantiles must be at least 2, got 1"):
        NormalQuantiles(1).fit(X)


def test_repairs_heal_what_they_are_for() -> None:
    X = clustered()
    X[:, 5] += 90
    before = {name: HEALTH[name](X) for name in ("isoscore", "average_cosine", "outlier_dimension_count")}
    assert HEALTH["outlier_dimension_count"](DropOutliers().fit_transform(X)) < before["outlier_dimension_count"]
    for step in (AllButTheTop(3), ClusterIsotropy(4, 1), Whiten()):
        healed = step.fit_transform(X)
        assert HEALTH["isoscore"](healed) > 1.2 * before["isoscore"]
        assert abs(HEALTH["average_cosine"](healed)) < before["average_cosine"] / 2


@pytest.mark.parametrize(
    "step", [AllButTheTop(1), ClusterIsotropy(2), DropOutliers(), CollapseGap(), NormalQuantiles()]
)
def test_repairs_stand_before_a_map_on_both_sides(step: Step, planted) -> None:
    X, Y = planted()
    model = Chain([step], Ridge(), [step]).fit(X, Y)
    assert not hasattr(step, "inverse_transform")
    assert model.source_to_shared(X).shape == model.target_to_shared(Y).shape
    # Ridge compares about the mean.
    expected = clone(step).fit(Y).transform(Y)
    np.testing.assert_allclose(model.target_to_shared(Y), expected - expected.mean(0), atol=1e-9)
