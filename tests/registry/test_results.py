"""Results under content addresses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from registry.errors import UserError
from registry.results import ResultStore, address, load_run, save_run


def test_round_trip_and_damage(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    key = address({"step": "test", "n": 1})
    assert store.get(key) is None
    store.put(key, {"a": [1, 2]}, {"x": np.arange(5, dtype=np.float32)})
    content, arrays = store.get(key) or ({}, {})
    assert content == {"a": [1, 2]}
    np.testing.assert_array_equal(arrays["x"], np.arange(5))
    store.path(key, ".safetensors").write_bytes(b"damaged")
    assert store.get(key) is None
    store.put(key, {}, {})
    store.path(key).write_text("{")
    assert store.get(key) is None


def test_the_address_is_of_content_and_code() -> None:
    assert address({"a": 1, "b": 2}) == address({"b": 2, "a": 1})
    assert address({"a": 1}) != address({"a": 2})


def test_runs_are_found_by_id_beginning_and_latest(own_home: Path) -> None:
    with pytest.raises(UserError, match="no run yet"):
        load_run("latest")
    for run_id in ("20260101-a", "20260102-b"):
        save_run({"id": run_id})
    assert load_run("latest")["id"] == "20260102-b"
    assert load_run("20260101")["id"] == "20260101-a"
    with pytest.raises(UserError, match="begins 2 runs"):
        load_run("2026")
    with pytest.raises(UserError, match="Did you mean"):
        load_run("20260103-b")
