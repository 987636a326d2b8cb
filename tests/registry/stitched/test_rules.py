"""Rules, temperatures and vectors: the artifact answers as this package's own rules do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_ndtr, softmax

from align.maps import Map
from align.rules import RULES, make_rule
from registry import stitched, stitched_model
from registry.errors import UserError
from registry.stitched_model import BadInput
from tests.registry.stitched.conftest import LABELS, OTHER_LABELS, Parts, png, unit


@pytest.mark.parametrize("labels", [LABELS, OTHER_LABELS])
@pytest.mark.parametrize("rule", stitched_model.RULES)
def test_every_rule_scores_as_the_package_does(
    rule: str, labels: Any, model: stitched_model.Model, parts: Parts, ridge: Map
) -> None:
    keys, references = model.prototypes(labels), unit(ridge.source_to_shared(parts.source))
    queries = unit(ridge.source_to_shared(parts.source[: len(parts.pictures)]))
    expected = make_rule(rule).fit(keys, references).scores(queries)
    images = [png(picture) for picture in parts.pictures]
    found = model.scores(images, labels, rule)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    best = model.predict(images, labels, rule=rule)
    assert [row[0][0] for row in best] == [labels[i] for i in expected.argmax(axis=1)]


def test_all_rules_of_one_space_but_the_distance_are_there() -> None:
    assert set(stitched_model.RULES) == set(RULES) - {"euclidean"}


def test_rules_change_answers(model: stitched_model.Model, parts: Parts) -> None:
    images = [png(picture) for picture in parts.pictures]
    said = {rule: [row[0][0] for row in model.predict(images, rule=rule)] for rule in stitched_model.RULES}
    assert any(said[rule] != said["cosine"] for rule in said)


def test_the_normal_distribution_far_below_zero() -> None:
    z = np.linspace(-60, 20, 2001)
    np.testing.assert_allclose(stitched_model._log_ndtr(z), log_ndtr(z), rtol=1e-6, atol=1e-12)


def test_a_temperature_gives_weights_over_all_classes(model: stitched_model.Model, parts: Parts) -> None:
    images = [png(picture) for picture in parts.pictures[:5]]
    expected = softmax(model.scores(images) / 0.05, axis=1)
    for row, weights in zip(model.predict(images, top_k=9, temperature=0.05), expected, strict=True):
        assert sum(weight for _, weight in row) == pytest.approx(1)
        np.testing.assert_allclose([weight for _, weight in row], np.sort(weights)[::-1], rtol=1e-3)
        assert row[0][0] == LABELS[int(weights.argmax())]


def test_texts_and_paths_and_pictures_are_answered_together(
    model: stitched_model.Model, parts: Parts, ridge: Map, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(parts.pictures[0]))
    items = ["a dog", tmp_path / "a.png", png(parts.pictures[0])[:50], png(parts.pictures[1])]
    answers = model.answers(items, output="embeddings")
    assert answers[2].keys() == {"error"}
    expected = unit(
        np.vstack([ridge.target_to_shared(parts.text.embed(["a dog"])), ridge.source_to_shared(parts.source[:2])])
    )
    found = np.stack([answers[row]["embedding"] for row in (0, 1, 3)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rule": "cosin"}, "rule 'cosin' is none of cosine, csls"),
        ({"output": "vectors"}, "output 'vectors' is none of labels, embeddings"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"rule": "mutual_proximity", "labels": ["a cat"]}, "at least two class names"),
    ],
)
def test_bad_parameters_are_explained(how: dict[str, Any], message: str, model: stitched_model.Model) -> None:
    with pytest.raises(BadInput, match=message):
        model.answers([b"not even looked at"], **how)


def test_a_model_of_vectors_does_without_its_image_encoder(
    folder: Path, parts: Parts, ridge: Map, tmp_path: Path
) -> None:
    head = stitched.write(folder, tmp_path / "head", "folder", inputs="vectors")
    model = stitched.load(head)
    assert not (head / "image.onnx").exists()
    for labels in (LABELS, OTHER_LABELS):
        expected = parts.scores(ridge, labels)
        answers = model.answers(parts.source[: len(expected)], labels, top_k=len(labels))
        for answer, scores in zip(answers, expected, strict=True):
            assert answer["labels"] == [labels[i] for i in np.argsort(-scores)]
            np.testing.assert_allclose(answer["scores"], np.sort(scores)[::-1], atol=1e-4 * np.abs(expected).max())
    whole = stitched.load(folder).answers(["a dog"], rule="csls")
    assert model.answers(["a dog"], rule="csls") == whole
    broken = parts.source[:3].copy()
    broken[1, 5] = np.nan
    assert [set(answer) for answer in model.answers(broken)] == [{"labels", "scores"}, {"error"}, {"labels", "scores"}]
    for bad, message in (
        (parts.source[:2].astype(np.float64), r"float32 of shape \(n, 1280\), not float64"),
        (parts.source[:2, :9], r"not float32 of \(2, 9\)"),
        (parts.source[0], r"not float32 of \(1280,\)"),
        (parts.source[:0], "the batch is empty"),
    ):
        with pytest.raises(BadInput, match=message):
            model.answers(bad)
    assert "takes vectors, not pictures" in model.answers([png(parts.pictures[0])])[0]["error"]
    with pytest.raises(BadInput, match="takes pictures, not vectors"):
        stitched.load(folder).answers(parts.source[:2])
    with pytest.raises(UserError, match="was exported for vectors"):
        stitched.write(head, tmp_path / "no", "folder")
    with pytest.raises(UserError, match="begins at pixels or token ids"):
        stitched.write(folder, tmp_path / "no", "onnx", inputs="vectors")
    assert not (tmp_path / "no").exists()
    shutil.rmtree(head)
