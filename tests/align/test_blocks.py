"""Sums of blocks: those of the whole, the same bits for the same blocks, whoever made them."""

from __future__ import annotations

import numpy as np
import pytest

from align import blocks
from align.moments import Moments, Points


def parted(
    X: np.ndarray, Y: np.ndarray, folds: np.ndarray, rows: int, *, center: bool = True
) -> tuple[list[list[blocks.Part | None]], int]:
    n_folds = int(folds.max()) + 1
    wanted = {(0, 0), (0, 1), (1, 1)}
    starts = range(0, len(X), rows)
    return [
        blocks.block_sums(
            [X[s : s + rows], Y[s : s + rows]], folds[s : s + rows], n_folds, wanted, center=center
        )
        for s in starts
    ], n_folds  # fmt: skip


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("rows", [7, 100, 1000])
def test_they_add_up_to_the_moments_of_all_items_and_folds(rows: int, center: bool) -> None:
    """Also where a block has no item of a fold: the folds here come one after another."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(311, 6)) @ rng.normal(size=(6, 6)) + 40).astype(np.float32)
    Y = (rng.normal(size=(311, 4)) - 7).astype(np.float32)
    folds = np.repeat([2, 0, 1], [100, 111, 100])
    parts, _ = parted(X, Y, folds, rows, center=center)
    whole = [part for part in blocks.tree(parts, blocks.merged) if part is not None]
    source, target = (blocks.with_folds([part.sums[i] for part in whole]) for i in range(2))
    got = Moments.paired(source, target, [part.crosses[0, 1] for part in whole])
    want = Points.of(X, folds, center=center).with_target(Points.of(Y, folds, center=center))
    for a, b in [(got, want), *zip(got.folds, want.folds, strict=True), *zip(got.rest, want.rest, strict=True)]:
        assert a.n == b.n
        np.testing.assert_allclose(a.source.center, b.source.center, rtol=1e-5)
        np.testing.assert_allclose(a.source.scatter, b.source.scatter, rtol=1e-4, atol=1e-4 * b.source.total)
        np.testing.assert_allclose(a.target.scatter, b.target.scatter, rtol=1e-4, atol=1e-4 * b.target.total)
        np.testing.assert_allclose(a.source.center - b.source.center, 0, atol=1e-4)
        np.testing.assert_allclose(a.cross, b.cross, rtol=1e-4, atol=1e-4 * np.sqrt(b.source.total * b.target.total))
    for one, other in zip(got.source.steps, want.source.steps, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # Against the sums written out in float64, to rounding.
    mean = X.mean(0, dtype=np.float64) * center
    x = X.astype(np.float64) - mean
    np.testing.assert_allclose(got.source.scatter, x.T @ x, rtol=1e-9, atol=1e-9 * got.source.total)


def test_the_tree_depends_on_the_number_of_nodes_alone() -> None:
    assert blocks.tree(list("abcdefg"), lambda a, b: f"({a}{b})") == "(((ab)(cd))((ef)g))"
    assert blocks.tree(["a"], lambda a, b: "") == "a"


def test_products_that_nobody_asked_for_are_not_taken() -> None:
    X = np.random.default_rng(0).normal(size=(20, 3))
    (part,) = blocks.block_sums([X, X], np.zeros(20, int), 1, {(0, 1), (1, 1)})
    assert part is not None
    assert part.sums[0].products is None
    assert (part + part).sums[0].products is None
    np.testing.assert_allclose(part.sums[1].scatter, part.crosses[0, 1])


def test_nan_is_refused() -> None:
    X = np.full((4, 2), np.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        blocks.block_sums([X, X], np.zeros(4, int), 1, {(0, 1)})
