"""Entries of the embedding store's format 1, brought to the present one without embedding again."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from align.files import write_atomically
from registry.errors import UserError

if TYPE_CHECKING:
    from registry.store import EmbeddingStore


def migrate(store: EmbeddingStore, key: str) -> None:
    """Take over an entry of format 1, as it is and without reading its vectors; its old folder then is gone.

    The new folder is made beside and moved into place as a whole, so that a killed migration is none.
    Raises `UserError` where the disk does not allow it.
    """
    new, old = store.folder(key), store.root / "v1" / key[:2] / key
    if not old.is_dir():
        return
    draft = type(store)(store.root / ".migrating")
    try:
        with FileLock(store.root / ".migrating.lock"):
            if not old.is_dir():
                return
            # A writer of the older version may still be at work.
            with FileLock(old / ".lock"):
                if not new.exists():
                    shutil.rmtree(draft.folder(key), ignore_errors=True)
                    draft.folder(key).mkdir(parents=True)
                    _take_over(old, draft)
                    new.parent.mkdir(parents=True, exist_ok=True)
                    os.rename(draft.folder(key), new)
                shutil.rmtree(old)
    except OSError as error:
        raise UserError(
            f"{old} is of the store's format 1 and cannot be brought to the present one: {error.strerror or error}"
        ) from None


def _take_over(old: Path, draft: EmbeddingStore) -> None:
    """Make an old entry one of the draft; arrays are shared with it as hard links where that can be."""
    from registry.store import Shard, array_name, side_name

    folder, shards = draft.folder(old.name), []
    for side in sorted(old.glob("[0-9]*.json")):
        array, number = side.with_suffix(".npy"), int(side.stem)
        try:
            width = np.load(array, mmap_mode="r", allow_pickle=False).shape[1]
            kept = {**json.loads(side.read_bytes()), "dimension": width, "bytes": array.stat().st_size}
        except (FileNotFoundError, ValueError, TypeError, IndexError):
            continue
        shard = Shard.read(json.dumps(kept).encode())
        if shard is None:
            continue
        name = folder / array_name(number, shard.sha256)
        try:
            os.link(array, name)
        except OSError:
            shutil.copyfile(array, name)
        write_atomically(folder / side_name(number), json.dumps(asdict(shard)).encode())
        shards.append(shard)
    path = old / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        whole = [shard.sha256 for shard in shards] == manifest["shards"]
        identity, details = manifest["identity"], manifest["details"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return  # Unfinished: the next writer goes on from its whole shards.
    if whole:
        draft.finish(old.name, identity, shards, details, datetime.fromtimestamp(path.stat().st_mtime, UTC))
