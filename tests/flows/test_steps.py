"""The steps of a run by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import steps
from flows.config import load_config
from registry.store import DamagedEntry
from tests.flows.test_config import write


def test_a_damaged_shard_of_a_finished_entry_is_found_before_it_is_used(own_home: Path, tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    done: list[int] = []
    key = steps.embed(config, "pixels", done.append)
    assert sum(done) == 1393
    assert steps.embed(config, "pixels", done.append) == key
    shard = steps.store().folder(key) / "00001.npy"
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
