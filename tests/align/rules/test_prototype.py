"""Nearest prototype by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.rules.prototype import NearestPrototype


@given(st.integers(0, 10**6))
def test_is_the_class_with_the_largest_cosine_to_its_mean_prompt(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompts, X = rng.normal(size=(7, 4)), rng.normal(size=(9, 4))
    labels = ["b", "a", "b", "c", "a", "b", "c"]
    rule = NearestPrototype(prompts * rng.uniform(1, 9, (7, 1)), labels)
    expected = []
    for x in X:
        scores = {}
        for label in "bac":
            mean = np.mean([p / np.linalg.norm(p) for p, own in zip(prompts, labels, strict=True) if own == label], 0)
            scores[label] = x @ mean / np.linalg.norm(x) / np.linalg.norm(mean)
        expected.append(max(scores, key=scores.__getitem__))
    assert rule.classes == ["b", "a", "c"]
    np.testing.assert_array_equal(rule.predict(X), expected)
    np.testing.assert_array_equal(rule.predict(5 * X), expected)
    assert (np.abs(rule.scores(X)) <= 1 + 1e-9).all()


def test_refuses_prompts_without_labels() -> None:
    with pytest.raises(ValueError, match="2 prompts for 3 labels"):
        NearestPrototype(np.eye(2), ["a", "b", "c"])
