"""Models on the Hugging Face hub: pinned to one commit, fetched, and a newer commit noticed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from registry.encoders.base import FromHub
from registry.errors import UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Pinned:
    """A repository at one commit."""

    repo: str
    revision: str
    """The full commit hash."""
    licence: str


def pin(repo: str, revision: str | None = None) -> Pinned:
    """The commit that `revision` (a branch, tag or commit; the main branch when not given) stands for now.

    Without a network it is the commit that the local hub cache has for it.
    Raises `UserError` when the hub knows no such model or revision, or cannot be asked and nothing is cached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=10)
    except GatedRepoError as error:
        raise UserError(
            f"model '{repo}' is gated: accept its terms on the hub and log in with  hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no model '{repo}' (or it is private: log in with  hf auth login)") from error
    except RevisionNotFoundError as error:
        raise UserError(f"model '{repo}' has no revision '{revision}'") from error
    except Exception as error:  # every way of being offline; the HTTP library behind it changes with the hub's version
        commit = _cached_commit(repo, revision or "main")
        if commit is None:
            wanted = f"'{repo}' at '{revision or 'main'}'"
            raise UserError(f"the hub cannot be reached, and its local cache has no {wanted}") from error
        return Pinned(repo, commit, "unknown")
    licences = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    return Pinned(repo, str(info.sha), licences[0] if licences else "unknown")


def fetch(pinned: Pinned, *names: str) -> Path:
    """The local path of the first of the files `names` that the repository has, downloaded when needed.

    Raises `UserError` when it has none of them, or they are not cached and the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    for name in names:
        try:
            return Path(hf_hub_download(pinned.repo, name, revision=pinned.revision))
        except Exception as error:  # absent there and unreachable differ by version; the last one is reported
            failure = error
    what = f"{' or '.join(names)} of '{pinned.repo}' at {pinned.revision[:12]}"
    raise UserError(f"cannot get {what}: {_first_line(failure)}") from failure


def fetch_folder(pinned: Pinned, patterns: list[str]) -> Path:
    """A local folder with the files that match `patterns`. Raises `UserError` when it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(pinned.repo, revision=pinned.revision, allow_patterns=patterns))
    except Exception as error:  # as in `fetch`
        raise UserError(f"cannot download '{pinned.repo}' at {pinned.revision[:12]}: {_first_line(error)}") from error


def newer_revision(encoder: object) -> str | None:
    """The commit that the hub's main branch has now, where it is not the encoder's; otherwise None.

    None too for an encoder that is not from the hub, and when the hub cannot be asked.
    """
    if not isinstance(encoder, FromHub) or encoder.repo is None:
        return None
    from huggingface_hub import HfApi

    try:
        latest = HfApi().model_info(encoder.repo, timeout=10).sha
    except Exception:  # a notice is a courtesy: no failure to get it may stop a run
        return None
    return latest if latest != encoder.revision else None


def _cached_commit(repo: str, revision: str) -> str | None:
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return None
    for cached in repositories:
        if cached.repo_id == repo and revision in cached.refs:
            return cached.refs[revision].commit_hash
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
