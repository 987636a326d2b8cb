"""Files at an fsspec URL: small calls that are tried again, and one clear error where the other side does not answer."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from registry.errors import MissingPackage, UserError, one_line

TRIES = 3
TIMEOUT = 20.0
"""Seconds that an S3 endpoint may be silent."""

Result = TypeVar("Result")


class StoreUnavailable(UserError):
    """The remote store does not answer; what is finished lies in the local cache, and the next run sends it."""


class Remote:
    """The folder at a URL (``s3://bucket/prefix``, ``gs://``, ...); settings and secrets come from the environment.

    Raises `UserError` for an unknown protocol or a pattern, `MissingPackage` where its file system is not installed.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        if set(self.url) & set("*?["):
            # fsspec would take them for a pattern, and remove what matches it.
            raise UserError(f"the store '{self.url}' has one of * ? [ in its address: choose a place without")
        protocol = self.url.partition("://")[0]
        options: dict[str, Any] = {}
        if protocol in ("s3", "s3a"):
            once = {"connect_timeout": TIMEOUT, "read_timeout": TIMEOUT, "retries": {"total_max_attempts": 1}}
            # In the options, for fsspec hands out one file system for the same ones.
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            options = {"config_kwargs": once, "endpoint_url": endpoint}
        try:
            self.fs, self.root = url_to_fs(self.url, use_listings_cache=False, **options)
        except ImportError as error:
            raise MissingPackage(f"a store at {protocol}://", str(error).split()[-1], "services") from None
        except ValueError as error:
            raise UserError(f"the store '{self.url}' has no protocol that is known here: {one_line(error)}") from None
        if options:
            self.fs.retries = 1

    def _call(self, function: Callable[..., Result], path: str, *more: Any) -> Result:
        for attempt in range(TRIES):
            try:
                return function(f"{self.root}/{path}", *more)
            except (FileNotFoundError, FileExistsError):
                raise
            except PermissionError as error:
                raise UserError(f"the store {self.url} refuses: {one_line(error)}; check its credentials") from None
            except Exception as error:  # each file system has errors of its own
                if getattr(error, "errno", None) == errno.EINVAL and "condition" in str(error):
                    raise FileExistsError(path) from None  # as some S3 servers say it
                if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                    raise UserError(f"the store {self.url} needs credentials: {one_line(error)}") from None
                problem = one_line(error)
                if attempt + 1 < TRIES:
                    time.sleep(0.5 * 2**attempt)
        raise StoreUnavailable(f"the store {self.url} does not answer ({problem}): when it is back, run again to go on")

    def read(self, path: str) -> bytes | None:
        """A file's content, or None where there is none."""
        try:
            return self._call(self.fs.cat_file, path)
        except FileNotFoundError:
            return None

    def write(self, path: str, content: bytes) -> None:
        """Write a whole file."""
        try:
            self._make_room(path)
            self._call(self.fs.pipe_file, path, content)
        except FileNotFoundError:
            raise self._no_bucket() from None

    def _make_room(self, path: str) -> None:
        if self.fs.protocol not in ("s3", ("s3", "s3a")):
            self._call(lambda to: self.fs.makedirs(to, exist_ok=True), path.rpartition("/")[0])

    def _no_bucket(self) -> UserError:
        return UserError(f"the store {self.url} cannot be written: is there such a bucket?")

    def create(self, path: str, content: bytes) -> bool:
        """Write a file where there is none; False where there is one."""
        try:
            self._make_room(path)
            self._call(lambda to: self.fs.pipe_file(to, content, mode="create"), path)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise self._no_bucket() from None
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        """The names right below a folder with their bytes; folders have none of their own."""
        try:
            listed = self._call(lambda path: self.fs.ls(path, detail=True), folder)
        except FileNotFoundError:
            return {}
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] or 0 for entry in listed}

    def usage(self, folder: str) -> tuple[int, float]:
        """The bytes of the files right below a folder, and when the last was written: seconds since 1970 by the store's
        clock, 0 where there is none."""
        try:
            listed = self._call(lambda path: self.fs.ls(path, detail=True), folder)
            files = [entry for entry in listed if entry["type"] == "file"]
            stamps = [entry.get("LastModified") or self.fs.modified(entry["name"]) for entry in files]
        except FileNotFoundError:
            return 0, 0.0
        return sum(entry["size"] for entry in files), max((stamp.timestamp() for stamp in stamps), default=0.0)

    def remove(self, path: str) -> None:
        """Remove a file or a folder with all that is in it."""
        try:
            self._call(lambda to: self.fs.rm(to, recursive=True), path)
        except FileNotFoundError:
            return
