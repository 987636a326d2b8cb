"""The embedding store: content-addressed, sharded, memory-mapped, atomic, checksummed, resumable."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from align import Space
from align.files import write_atomically
from registry.errors import BadItem, UserError

FORMAT = 1
"""Version of the store's layout; it is part of every path, so that formats never mix."""

SHARD_ROWS = 512
"""Items a shard: what a killed run loses at most."""


class DamagedEntry(UserError):
    """Stored vectors do not match their checksum; the message says what to remove."""


@dataclass(frozen=True)
class Identity:
    """All that the vectors depend on; its digest is their address."""

    encoder: str
    weights: str
    preprocessing: str
    backend: str
    data: str
    column: str
    dtype: str = "float32"
    on_bad_item: str = "stop"

    @property
    def key(self) -> str:
        """The address: 32 hex digits of SHA-256."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Shard:
    """One shard that is whole on disk."""

    rows: int
    sha256: str
    keys: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    """Items left out, with the reason."""


class EmbeddingStore:
    """Embeddings under a folder, shared by runs and processes.

    An entry is ``<root>/v1/<key[:2]>/<key>/``: shards ``00000.npy`` with their keys and checksum in
    ``00000.json``, and ``manifest.json``, written last. An entry without a manifest is unfinished: the next
    writer goes on from its whole shards.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, key: str) -> Path:
        """Where the entry lies, or will."""
        if len(key) != 32 or not set(key) <= set("0123456789abcdef"):
            raise UserError(f"'{key}' is no store key: expected 32 hex digits")
        return self.root / f"v{FORMAT}" / key[:2] / key

    def __contains__(self, key: str) -> bool:
        return (self.folder(key) / "manifest.json").is_file()

    def entries(self) -> Iterator[str]:
        """The keys of all finished entries."""
        for manifest in sorted(self.root.glob(f"v{FORMAT}/??/*/manifest.json")):
            yield manifest.parent.name

    def manifest(self, key: str) -> dict[str, Any]:
        """What is known of a finished entry: identity, dimension, shards, rows, skipped items."""
        path = self.folder(key) / "manifest.json"
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"the store has no finished entry {key}") from None
        except ValueError:
            raise DamagedEntry(f"{path} is damaged: remove the folder {path.parent} and run again") from None

    def open(self, key: str, name: str = "", *, verify: bool = True) -> Space:
        """The entry as a memory-mapped space.

        Raises `UserError` where there is none, `DamagedEntry` where a shard is not what was written
        (`verify` reads every byte once).
        """
        folder, manifest = self.folder(key), self.manifest(key)
        keys: list[str] = []
        shards = []
        for number, expected in enumerate(manifest["shards"]):
            shard = self._shard(folder, number, verify=verify)
            if shard is None or shard.sha256 != expected:
                raise DamagedEntry(f"shard {number} of {folder} is missing or damaged: remove the folder and run again")
            keys += shard.keys
            if shard.rows:
                shards.append(np.load(folder / f"{number:05d}.npy", mmap_mode="r", allow_pickle=False))
        return Space(name or manifest["identity"]["encoder"], keys, shards, fingerprint=key)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the entry for writing; another writer of the same entry waits, and then finds it finished."""
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield

    def write(
        self,
        identity: Identity,
        keys: Sequence[str],
        embed: Callable[[range], tuple[np.ndarray, list[int], list[tuple[str, str]]]],
        *,
        progress: Callable[[int], None] = lambda rows: None,
        details: dict[str, Any] | None = None,
    ) -> str:
        """Embed what is missing of an entry and finish it; gives its key.

        Parameters
        ----------
        identity : what the vectors depend on.
        keys : all n item keys.
        embed : called with the row numbers of each missing shard; gives the vectors (m, d), the m row numbers
            that they belong to, and what was skipped as (key, reason).
        progress : called with the numbers of items that are stored already.
        details : kept in the manifest beside the identity (licence, name of the data set, ...).

        Raises what `embed` raises, and OSError (a full disk): whole shards stay, and the next call goes on.
        """
        key = identity.key
        with self.lock(key):
            if key in self:
                progress(len(keys))
                return key
            folder, begun = self.folder(key), time.perf_counter()
            shards, fresh = [], 0
            for number, start in enumerate(range(0, len(keys), SHARD_ROWS)):
                wanted = range(start, min(start + SHARD_ROWS, len(keys)))
                shard = self._shard(folder, number, verify=True)
                if shard is None:
                    shard = self._write_shard(folder, number, keys, *embed(wanted), dtype=identity.dtype)
                    fresh += shard.rows
                else:
                    progress(len(wanted))
                shards.append(shard)
            if not any(shard.rows for shard in shards):
                reason = next((why for shard in shards for _, why in shard.skipped), "it has none")
                raise UserError(f"no item of the data set could be embedded by {identity.encoder}: {reason}")
            manifest = {
                "format": FORMAT,
                "identity": asdict(identity),
                "details": {**(details or {}), "seconds": time.perf_counter() - begun if fresh == len(keys) else None},
                "rows": sum(shard.rows for shard in shards),
                "dimension": self._dimension(folder, shards),
                "shards": [shard.sha256 for shard in shards],
                "skipped": [skipped for shard in shards for skipped in shard.skipped],
            }
            write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
        return key

    @staticmethod
    def _dimension(folder: Path, shards: list[Shard]) -> int:
        widths = {
            np.load(folder / f"{number:05d}.npy", mmap_mode="r", allow_pickle=False).shape[1]
            for number, shard in enumerate(shards)
            if shard.rows
        }
        if len(widths) != 1:
            raise UserError(f"the encoder gave vectors of different dimensions: {sorted(widths)}")
        return int(widths.pop())

    @staticmethod
    def _write_shard(
        folder: Path,
        number: int,
        keys: Sequence[str],
        vectors: np.ndarray,
        rows: list[int],
        skipped: list[tuple[str, str]],
        *,
        dtype: str,
    ) -> Shard:
        vectors = np.ascontiguousarray(vectors, dtype=dtype)
        if vectors.shape[0] != len(rows):
            raise UserError(f"the encoder gave {vectors.shape[0]} vectors for {len(rows)} items")
        if bad := [row for row, vector in zip(rows, vectors, strict=True) if not np.isfinite(vector).all()]:
            raise BadItem(keys[bad[0]], f"its embedding holds NaN or infinity (and {len(bad) - 1} more like it)")
        content = io.BytesIO()
        np.save(content, vectors, allow_pickle=False)
        data = content.getvalue()
        shard = Shard(len(rows), hashlib.sha256(data).hexdigest(), tuple(keys[row] for row in rows), tuple(skipped))
        write_atomically(folder / f"{number:05d}.npy", data)
        write_atomically(folder / f"{number:05d}.json", json.dumps(asdict(shard)).encode())
        return shard

    @staticmethod
    def _shard(folder: Path, number: int, *, verify: bool) -> Shard | None:
        """The shard if it is whole on disk, else None."""
        array, side = folder / f"{number:05d}.npy", folder / f"{number:05d}.json"
        try:
            kept = json.loads(side.read_text())
            shard = Shard(kept["rows"], kept["sha256"], tuple(kept["keys"]), tuple(map(tuple, kept["skipped"])))
            if verify:
                with array.open("rb") as file:
                    whole = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
                return shard if whole else None
            return shard if array.is_file() else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
