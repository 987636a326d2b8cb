"""The compatibility matrix, AC and AM by hand."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from align.tasks.compatibility import Compatibility, compatibility


def versions(seed: int = 0, n: int = 90) -> tuple[list[np.ndarray], np.ndarray]:
    """One space, seen ever more clearly."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 6
    centres = rng.normal(size=(6, 8))
    return [centres[labels] + noise * rng.normal(size=(n, 8)) for noise in (2.0, 1.2, 0.6)], labels.astype(str)


def test_matrix_is_that_of_a_nearest_neighbour_classifier() -> None:
    (queries, labels), (galleries, _) = versions(), versions(1, 120)
    others = (np.arange(120) % 6).astype(str)
    found = compatibility(queries, labels, galleries, others)
    for i in range(3):
        for j in range(3):
            near = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(galleries[j], others)
            assert found.matrix[i, j] == pytest.approx(near.score(queries[i], labels))
            assert found.outcomes()[f"query {i + 1}, gallery {j + 1}"][0].mean() == found.matrix[i, j]


def test_without_a_gallery_each_query_looks_among_the_others() -> None:
    spaces, labels = versions()
    found = compatibility(spaces, labels)
    for i in range(3):
        for j in range(3):
            x, y = (Z / np.linalg.norm(Z, axis=1, keepdims=True) for Z in (spaces[i], spaces[j]))
            cosines = x @ y.T
            np.fill_diagonal(cosines, -2)
            assert found.matrix[i, j] == np.mean(labels[cosines.argmax(1)] == labels)


def test_averages_by_hand() -> None:
    # Of ten queries so many hit.
    counts = np.array([[5, 9, 9], [6, 7, 9], [5, 8, 9]])
    found = Compatibility((np.arange(10) < counts[:, :, None]).astype(float))
    # 6 > 5 and 8 > 7, but 5 = 5.
    assert found.average_compatibility().value == pytest.approx(2 / 3)
    values, statistic = found.outcomes()["average_accuracy"]
    assert (values.mean(), statistic) == (pytest.approx((5 + 6 + 7 + 5 + 8 + 9) / 60), "mean")
    same = Compatibility(np.ones((4, 4, 10))).average_compatibility()
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_ac_tells_versions_of_one_space_from_unrelated_ones() -> None:
    spaces, labels = versions(n=240)
    found = compatibility(spaces, labels).average_compatibility()
    assert found.value == 1
    assert found.low > 0.6
    turned = [X @ np.linalg.qr(np.random.default_rng(i).normal(size=(8, 8)))[0] for i, X in enumerate(spaces)]
    assert compatibility(turned, labels).average_compatibility().high == 0


def test_refusals() -> None:
    spaces, labels = versions()
    with pytest.raises(ValueError, match="at least two versions, got 1"):
        compatibility(spaces[:1], labels)
    with pytest.raises(ValueError, match=r"one space, got the shapes \(90, 8\), \(90, 7\).*orthogonal_extension"):
        compatibility([spaces[0], spaces[1][:, 1:]], labels)
    with pytest.raises(ValueError, match="no labels"):
        compatibility(spaces, None)
    with pytest.raises(ValueError, match="no labels"):
        compatibility(spaces, labels, spaces)
    with pytest.raises(ValueError, match="at least two classes"):
        compatibility(spaces, ["a"] * 90)
