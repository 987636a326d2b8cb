"""One pair on one split: what is shared and subtracted equals what is refitted from the rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from align import make_map
from align.evaluation import Anchors, Evaluation, Tasks, pool
from align.pair import split

SPLIT = split([f"k{i}" for i in range(150)], n_folds=3, random_state=0)
rng = np.random.default_rng(0)
LABELS = [f"class {i % 3}" for i in range(150)]
LATENT = rng.standard_normal((150, 6)) + 3 * np.eye(6)[np.arange(150) % 3]


def evaluation(d: int) -> Evaluation:
    """Two noisy linear views of the same points; d decides whether anchors are fewer than dimensions."""
    generator = np.random.default_rng(d)
    X, Y = (
        (LATENT @ generator.standard_normal((6, width)) + generator.standard_normal((150, width)) + 1).astype(
            np.float32
        )
        for width in (d, d // 2)
    )
    held = SPLIT.held_out
    sides = (Anchors(Z[SPLIT.anchors], SPLIT.folds) for Z in (X, Y))
    return Evaluation(*sides, X[held], Y[held], SPLIT, Tasks(labels=LABELS, stitch=True))


MAPS = [
    ("ridge", {"alphas": 5.0}),
    ("procrustes", {}),
    ("cca", {"n_components": 4, "regularisation": 1.0}),
    ("relative", {}),
]


@pytest.mark.parametrize("d", [20, 160])
@pytest.mark.parametrize(("name", "parameters"), MAPS)
def test_cross_validation_by_subtraction_is_refitting(name: str, parameters: dict[str, object], d: int) -> None:
    one = evaluation(d)
    fitted = one.fit(make_map(name, **parameters))
    hits = []
    for fold in range(3):
        out = SPLIT.folds == fold
        X, Y = one.source.vectors, one.target.vectors
        again = make_map(name, **parameters).fit(X[~out], Y[~out])
        cosines = cosine_similarity(again.source_to_shared(X[out]), again.target_to_shared(Y[out]))
        hits.append((cosines >= np.diag(cosines)[:, None]).sum(1) <= 10)
    # Whitened noise may turn a single near tie.
    assert one.cross_validate(fitted)["cosine", "retrieval", "recall_at_10"] == pytest.approx(
        np.mean(np.concatenate(hits)), abs=1.5 / len(SPLIT.anchors)
    )


@pytest.mark.parametrize("d", [20, 160])
@pytest.mark.parametrize(("name", "parameters"), MAPS[:3])
def test_the_shuffled_control_is_a_fit_on_permuted_pairs(name: str, parameters: dict[str, object], d: int) -> None:
    one = evaluation(d)
    fitted = one.fit(make_map(name, **parameters))
    by_fold = np.argsort(SPLIT.folds, kind="stable")
    order = np.random.default_rng(0).permutation(len(by_fold))
    X, Y = one.source.vectors[by_fold], one.target.vectors[by_fold][order]
    again = make_map(name, **parameters).fit(X, Y)
    shuffled = one.fit_shuffled(fitted)
    inside = one.source.vectors
    np.testing.assert_allclose(shuffled.transform(inside), again.transform(inside), rtol=1e-3, atol=1e-3)
    assert (
        one.judge(shuffled)["cosine", "retrieval", "mrr"][0].mean()
        < one.judge(fitted)["cosine", "retrieval", "mrr"][0].mean()
    )


def test_pooled_seeds_know_an_item_when_it_comes_again() -> None:
    hits = (np.arange(60) % 3 == 0).astype(float)
    ranks = np.where(hits > 0, 1.0, 30.0)
    made = {
        ("m", "cosine", "retrieval", "recall_at_1"): (hits, "mean"),
        ("m", "cosine", "retrieval", "median_rank"): (ranks, "median"),
    }
    units = [f"i{i}" for i in range(60)]
    names = {"source": "a", "target": "b", "split": "item"}
    baselines = {("m", "cosine", "retrieval", "recall_at_1"): {"chance": 1 / 60}}
    (once, _), (twice, _) = (pool(names, [made] * n, [units] * n, baselines, unit="items") for n in (1, 2))
    assert (once.value, once.n) == (twice.value, twice.n) == (pytest.approx(1 / 3), 60)
    # The same items again add no information.
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high), abs=1e-12)
    assert once.baselines == {"chance": 1 / 60}
    assert once.p_value is not None
    assert once.p_value < 0.01
