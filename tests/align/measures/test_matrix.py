"""All spaces at once against each pair by itself."""

import numpy as np
import pytest

from align.measures import matrix
from align.measures.matrix import similarity_matrices
from align.measures.similarity import linear_cka, mutual_knn


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_is_every_pair_by_itself(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 5))
    spaces = {"a": base + 3, "b": base @ rng.normal(size=(5, 60)), "c": rng.normal(size=(40, 7)).astype(np.float32)}
    monkeypatch.setattr(matrix, "BLOCK_BYTES", rows * 4 * 40 * 3)
    found = similarity_matrices(spaces, k=4)
    for i, X in enumerate(spaces.values()):
        for j, Y in enumerate(spaces.values()):
            assert found["cka"][i, j] == pytest.approx(linear_cka(X, Y), abs=1e-5)
            assert found["cka_debiased"][i, j] == pytest.approx(linear_cka(X, Y, debiased=True), abs=1e-5)
            assert found["mutual_knn"][i, j] == mutual_knn(X, Y, k=4)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="same items"):
        similarity_matrices({"a": np.eye(5), "b": np.eye(6)})
    with pytest.raises(ValueError, match="at least 4 items, got 3"):
        similarity_matrices({"a": np.eye(3)})
