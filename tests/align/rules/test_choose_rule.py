"""The choice of a rule against folds written out; held-out items have no part in it."""

import numpy as np
import pytest

from align.maps.linear import Ridge
from align.maps.relative import Relative
from align.maps.subspace import CCA
from align.rules import RULES, make_rule
from align.rules.choose import CANDIDATES, choose_rule
from align.rules.hubness import CSLS, Cosine


def folds(n: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(n) % 4)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_is_the_least_mean_log_rank_over_folds_written_out(planted, direction) -> None:
    X, Y = planted(n=120, noise=3.0)
    model, of = Ridge(alphas=5.0).fit(X, Y), folds(120)
    best, compared = choose_rule(model, X, Y, of, direction=direction)
    assert set(compared) == set(CANDIDATES)
    assert best == min(compared, key=compared.__getitem__)
    for label, rule in (("cosine", Cosine()), ("csls", CSLS())):
        logs = []
        for fold in range(4):
            out, inside = of != fold, of == fold
            again = Ridge(alphas=5.0).fit(X[out], Y[out])
            sides = {
                "forward": (again.source_to_shared, X, again.target_to_shared, Y),
                "backward": (again.target_to_shared, Y, again.source_to_shared, X),
            }
            ask, A, answer, B = sides[direction]
            scores = rule.fit(answer(B[inside]), ask(A[out])).scores(ask(A[inside]))
            own = np.diag(scores)[:, None]
            logs += list(np.log((scores >= own - 1e-9).sum(1)))
        assert compared[label] == pytest.approx(np.mean(logs), rel=1e-9)


def test_every_kind_of_map_can_be_asked(planted) -> None:
    X, Y = planted(n=60, noise=1.0)
    for model in (CCA(3, regularisation=1.0), Relative(n_anchors=20), Ridge(alphas=1.0, center=False)):
        best, compared = choose_rule(model.fit(X, Y), X, Y, folds(60))
        assert compared[best] <= compared["cosine"]


def test_hubs_make_it_choose_a_rule_against_them() -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(300, 12))
    # Sources know the first few coordinates alone: regressed, they lie near each other's middle.
    Y = X @ rng.normal(size=(12, 20)) + 3 * rng.standard_t(3, size=(300, 20))
    best, _ = choose_rule(Ridge(alphas=300.0).fit(X, Y), X, Y, folds(300))
    assert best != "cosine"


def test_candidates_are_named_and_served() -> None:
    # What is chosen by default are rules that configurations can name.
    assert {type(rule) for rule in CANDIDATES.values()} <= set(RULES.values())
    assert type(make_rule("cosine")) is type(CANDIDATES["cosine"])


def test_refusals(planted) -> None:
    X, Y = planted()
    model = Ridge(alphas=1.0).fit(X, Y)
    with pytest.raises(ValueError, match="no rule to choose from"):
        choose_rule(model, X, Y, folds(60), candidates={})
    with pytest.raises(ValueError, match="60 anchors need a fold number each"):
        choose_rule(model, X, Y, np.zeros(60, int))
