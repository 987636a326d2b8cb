"""Whoever reads the store while others write it: every shard that is said to be whole must be, at every moment.

It does not use the store's own code, but its layout: a side file names an array by its checksum, a manifest names them all.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Reader:
    """Verifies what is new of an entry's files each time that it is asked."""

    def __init__(self) -> None:
        self.done: set[tuple[str, str]] = set()
        self.verified = 0
        self.broken: list[str] = []

    def look(self, place: str, names: list[str], read: Callable[[str], bytes | None]) -> None:
        """Verify the side files and manifests among the names (``.../<key>/<file>``) of a store."""
        for name in names:
            folder, _, file = name.rpartition("/")
            is_manifest = file == "manifest.json"
            if not is_manifest and not (file.endswith(".json") and file[:5].isdigit()):
                continue
            content = read(name)
            # A rewritten file is another one.
            if content is None or (mark := (f"{place}/{name}", hashlib.sha256(content).hexdigest())) in self.done:
                continue
            try:
                said = json.loads(content)
                if is_manifest:
                    wanted = {
                        f"{n:05d}-{one['sha256'][:16]}.npy": one["sha256"] for n, one in enumerate(said["shards"])
                    }
                    wanted[f"keys-{said['keys']['sha256'][:16]}.json"] = said["keys"]["sha256"]
                else:
                    wanted = {f"{file[:5]}-{said['sha256'][:16]}.npy": said["sha256"]}
                for array, sha256 in wanted.items():
                    data = read(f"{folder}/{array}")
                    if data is None and read(name) is None:
                        continue  # Removed in the meantime, the side file first.
                    if data is None or hashlib.sha256(data).hexdigest() != sha256:
                        self.broken.append(f"{place}/{folder}/{array} is {'missing' if data is None else 'not whole'}")
                    self.verified += 1
            except (ValueError, KeyError, TypeError) as error:
                self.broken.append(f"{place}/{name} is half written: {error!r}")
            self.done.add(mark)


def main(homes: Path, bucket: str) -> None:
    """Read all stores below `homes` and in the bucket until standard input ends; prints what was found."""
    import select

    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    s3 = boto3.client("s3", config=Config(read_timeout=60, retries={"total_max_attempts": 1}))
    reader = Reader()
    rounds, wanted = 0, True

    def stored(name: str) -> bytes | None:
        try:
            return bytes(s3.get_object(Bucket=bucket, Key=name)["Body"].read())
        except s3.exceptions.NoSuchKey:
            return None

    def local(root: Path) -> Callable[[str], bytes | None]:
        def read(name: str) -> bytes | None:
            try:
                return (root / name).read_bytes()
            except FileNotFoundError:
                return None

        return read

    while wanted:
        wanted = not select.select([sys.stdin], [], [], 0.5)[0]
        for root in sorted(homes.glob("*/store/v2")):
            names = [str(path.relative_to(root)) for path in root.glob("??/*/*.json")]
            reader.look(str(root), names, local(root))
        try:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            reader.look("", [one["Key"] for page in pages for one in page.get("Contents", ())], stored)
        except (BotoCoreError, ClientError) as error:
            if "NoSuchBucket" not in str(error):
                time.sleep(0.5)  # Stalled on purpose.
        rounds += 1
    result: dict[str, Any] = {"rounds": rounds, "verified": reader.verified, "broken": reader.broken}
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
