"""The steps of a run by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import steps
from flows.config import load_config
from registry.errors import UserError
from registry.store import DamagedEntry
from tests.flows.test_config import write


def test_a_damaged_shard_of_a_finished_entry_is_found_before_it_is_used(own_home: Path, tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    done: list[int] = []
    key = steps.embed(config, "pixels", done.append)
    assert sum(done) == 1393
    assert steps.embed(config, "pixels", done.append) == key
    (shard,) = steps.store().folder(key).glob("00001-*.npy")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedEntry, match="shard 1 of .* remove the folder and run again"):
        steps.embed(config, "pixels", done.append)


def test_the_plan_says_what_is_stored_without_computing(own_home: Path, tmp_path: Path) -> None:
    from flows.plan import plan

    config = load_config(write(tmp_path))
    assert not any(space["stored"] for space in plan(config)["spaces"])
    steps.embed(config, "pixels", lambda items: None)
    planned = plan(config)
    assert {space["name"]: space["stored"] for space in planned["spaces"]} == {"pixels": True, "glove": False}
    assert planned["evaluations"] == {"all": 1, "stored": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": [["glove", "pixels"]], "zero_shot": {"templates": ["{}"]}}, "'zero_shot' needs a pair from pictures to a text"),
        ({"pairs": [["pixels", "glove"]]}, "'stitching' needs a pair with pictures as its target"),
        ({"pairs": [["glove", "pixels"]]}, "'pretrained_head' needs a target whose encoder brings its classifier"),
    ],
)  # fmt: skip
def test_a_task_that_no_pair_can_have_is_refused_before_anything_is_computed(
    own_home: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    from flows.plan import plan

    task = words.split("'")[1]
    config = load_config(write(tmp_path, tasks=["retrieval", task], **changes))
    with pytest.raises(UserError, match=words) as caught:
        plan(config)
    assert "\n" not in str(caught.value)
    # Where no task is named, what does not apply is left out.
    steps.check_tasks(load_config(write(tmp_path, **changes)))


def test_a_task_with_labels_is_refused_where_there_are_none(own_home: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("key,en\nx,one\ny,two\n")
    dataset = {"name": "table", "options": {"path": str(tmp_path / "t.csv"), "key": "key", "text": "en"}}
    spaces = {name: {"encoder": "glove-6b-50d", "column": "en"} for name in ("pixels", "glove")}
    config = load_config(write(tmp_path, dataset=dataset, spaces=spaces, tasks=["stitching"]))
    with pytest.raises(
        UserError, match="'stitching' needs labels of two classes or more, and data set 'table' has none"
    ):
        steps.check_tasks(config)
