"""Anchors from a classifier's head: its classes as a data set, and its rows as their embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from align.maps import Map, make_map
from align.tasks.retrieval import retrieval_ranks
from registry import datasets, encoders
from registry.datasets.imagenet import wnids
from registry.errors import MissingPackage, UserError

MODEL = "efficientnet-lite0"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUTURE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def rows() -> Any:
    missing = encoders.CATALOG[MODEL].missing()
    if missing:
        pytest.skip(f"{missing} is not installed")
    return encoders.create("classifier-rows", of=MODEL)


# --- the classes


def test_classes_stand_in_the_order_of_the_outputs() -> None:
    dataset = datasets.create("imagenet-classes")
    assert len(dataset.keys) == len(set(dataset.keys)) == 1000
    assert list(dataset.keys) == sorted(dataset.keys)  # ImageNet numbers its classes by WordNet id
    known = {0: "tench", 1: "goldfish", 2: "great white shark", 340: "zebra", 817: "sports car", 954: "banana"}
    assert {index: dataset.read("name", index) for index in known} == known
    for index in known:
        assert str(dataset.read("name", index)) in str(dataset.read("definition", index)).lower()
        assert dataset.read("wnid", index) == dataset.keys[index]
    assert all(str(dataset.read(column, row)).strip() for column in dataset.columns for row in range(1000))


def test_names_and_definitions_come_from_packages_that_agree() -> None:
    # The names are one package's, the definitions another's: a shift by one class would leave no words in common.
    dataset = datasets.create("imagenet-classes")
    words = [
        {column: set(str(dataset.read(column, row)).lower().replace(":", " ").replace(",", " ").split())
         for column in ("name", "definition")}
        for row in range(1000)
    ]  # fmt: skip

    def share(shift: int) -> float:
        return float(np.mean([bool(words[i]["name"] & words[i - shift]["definition"]) for i in range(1000)]))

    assert share(0) > 0.9
    assert share(1) < 0.5


def test_fingerprints_differ_by_column_and_stay() -> None:
    first, second = datasets.create("imagenet-classes"), datasets.create("imagenet-classes")
    prints = [first.fingerprint(column) for column in first.columns]
    assert len(set(prints)) == len(prints)
    assert prints == [second.fingerprint(column) for column in second.columns]
    with pytest.raises(UserError, match="unknown column of data set 'imagenet-classes' 'names'. Did you mean 'name'"):
        first.fingerprint("names")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.datasets.imagenet.find_spec", lambda module: None)
    with pytest.raises(MissingPackage, match="timm"):
        datasets.check("imagenet-classes", {})


# --- the rows


def test_rows_give_the_classifiers_own_logits(rows: Any) -> None:
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    model: Any = encoders.create(MODEL)
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (240, 240, 3), np.uint8)) for _ in range(3)]
    embedded = model.embed(pictures)
    _, bias = model.head()
    logits = embedded @ rows.embed(list(wnids())).T + bias
    network = EfficientNet.from_name(MODEL).eval()
    network.load_state_dict(torch.load(model._checkpoint, weights_only=True))
    with torch.no_grad():
        own = network(torch.from_numpy(model.preprocess(pictures))).numpy()
    np.testing.assert_allclose(logits, own, atol=1e-3 * np.abs(own).max())


def test_rows_come_in_the_order_that_is_asked(rows: Any) -> None:
    whole = rows.embed(list(wnids()))
    assert whole.shape == (1000, rows.dimension)
    assert whole.dtype == np.float32
    asked = [954, 0, 340, 0]
    np.testing.assert_array_equal(rows.embed([wnids()[index] for index in asked]), whole[asked])


def test_a_run_configuration_makes_a_pair_that_finds_unseen_classes(tmp_path: Path, rows: Any) -> None:
    from flows import steps
    from flows.config import load_config

    path = tmp_path / "heads.yaml"
    path.write_text(
        f"""
name: heads
dataset: {{name: imagenet-classes}}
spaces:
  rows: {{encoder: classifier-rows, column: wnid, options: {{of: {MODEL}}}}}
  names: {{encoder: minilm-l6, column: name}}
pairs: [[rows, names]]
maps: [procrustes]
"""
    )
    config = load_config(path)
    keys = {name: steps.embed(config, name, lambda items: None) for name in config.spaces}
    evaluation, _ = steps.Workbench(config, keys, {}, "item", 0).evaluation("rows", "names")
    assert len(evaluation.split.held_out) == 300
    held_out = evaluation.held_out_source, evaluation.held_out_target

    def recall(model: Map) -> float:
        ranks = retrieval_ranks(model.source_to_shared(held_out[0]), model.target_to_shared(held_out[1]))
        return float((ranks <= 10).mean())

    fitted = evaluation.fit(make_map("procrustes"))
    assert recall(fitted) > 0.4  # chance is .033
    assert recall(evaluation.fit_shuffled(fitted)) < 0.1


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "minilm-l6"}, "encoder 'minilm-l6' brings no classifier head; these do: efficientnet-lite0"),
        ({"of": "untrained"}, "encoder 'untrained' brings no classifier head"),
        ({"of": "efficientnet-lit0"}, "unknown encoder 'efficientnet-lit0'. Did you mean 'efficientnet-lite0'?"),
        ({}, "encoder 'classifier-rows' needs the option of"),
        ({"of": MODEL, "bias": True}, "unknown option of encoder 'classifier-rows': 'bias'"),
    ],
)
def test_wrong_options_are_explained_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        encoders.create("classifier-rows", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_item_that_is_no_class_is_named(rows: Any) -> None:
    with pytest.raises(UserError, match="'tench' is not the WordNet id .* column 'wnid'"):
        rows.embed(["n01440764", "tench"])


def test_a_head_over_other_classes_is_refused(monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
    made: Any = encoders.create("classifier-rows", of=MODEL)
    small = np.zeros((10, 1280), np.float32), np.zeros(10, np.float32)
    monkeypatch.setattr(made._classifier, "head", lambda: small)
    with pytest.raises(UserError, match="10 classes, not ImageNet's 1000"):
        made.embed(["n01440764"])
