"""Who is told: a webhook, on a change that matters, a failed run or a stale champion, and once."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote
from uuid import UUID

from flows.config import RunConfig, WatchConfig
from flows.logs import log, redact
from registry.errors import UserError, one_line
from registry.home import home

URL = "SUTURE_WEBHOOK_URL"
"""The environment variable with the address, which is a secret; `<URL>_FILE` names a file that holds it."""
TIMEOUT = 10.0

Kind = Literal["changes", "stale", "failed"]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """A message that was redirected would arrive without its content."""


def webhook() -> str | None:
    """The address that is told, or None. Raises `UserError` for a file that is not there and an address that is none."""
    url = os.environ.get(URL, "")
    if not url and (path := os.environ.get(f"{URL}_FILE")):
        try:
            url = Path(path).read_text()
        except OSError as error:
            raise UserError(f"{URL}_FILE={path} cannot be read: {error.strerror}") from None
    url = url.strip()
    if url and not url.startswith(("http://", "https://")):
        raise UserError(f"{URL} must begin with http:// or https://")
    return url or None


def send(run_id: str, kind: Kind, text: str, *, changes: Sequence[str] = (), link: str = "", name: str = "") -> bool:
    """Tell the webhook, if there is one and it was not told just this of this run; gives whether it took the message.

    Never raises: what goes wrong is a line of the log. A message that surely did not arrive may be sent again later, one
    that perhaps did is not.
    """
    mark = home() / "notices" / f"{quote(run_id, safe='')}-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    try:
        url = webhook()
        if url is None:
            return False
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except (UserError, OSError) as error:
        log.warning("no notification: %s", error)
        return False
    content = {
        "text": redact(text), "run": run_id, "name": name, "kind": kind,
        "changes": [redact(change) for change in changes], "link": redact(link),
    }  # fmt: skip
    request = urllib.request.Request(
        url, json.dumps(content).encode(), {"Content-Type": "application/json", "User-Agent": "suture"}, method="POST"
    )
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT):
            log.info("notified: %s", text)
            return True
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(error, urllib.error.HTTPError) or isinstance(reason, ConnectionRefusedError | socket.gaierror):
            with suppress(OSError):
                mark.unlink()
        log.warning(
            "the webhook did not take the message: %s", one_line(error) if isinstance(error, OSError) else "bad address"
        )
        return False


def changed(config: RunConfig, run: dict[str, Any], *, link: str = "") -> None:
    """Tell of a finished run what has changed by its drift, and whether its champion is stale."""
    if config.watch.notify != "changes":
        return
    about: dict[str, Any] = {"link": link, "name": run["name"]}
    watched = run.get("watch") or {}
    alerts = [sentence(row) for row in (watched.get("drift") or {}).get("rows", []) if row["alert"]]
    if alerts:
        more = f" and {len(alerts) - 1} more" if len(alerts) > 1 else ""
        text = f"{run['name']}: {alerts[0]}{more} (run {run['id']}, against {watched['drift']['against']})"
        send(run["id"], "changes", text, changes=alerts, **about)
    if stale := watched.get("stale"):
        text = f"{run['name']}: the champion of '{run['config']['champion']['name']}' is stale: {'; '.join(stale)}"
        send(run["id"], "stale", text, changes=stale, **about)


def sentence(row: dict[str, Any]) -> str:
    """A line of the drift table in words."""
    sides = "" if row["before"] is None else f", {row['before']:.4g} to {row['after']:.4g}"
    q = "" if row["q_value"] is None else f", q {row['q_value']:.2g}"
    note = f" ({row['note']})" if row["note"] else ""
    return (
        f"{row['kind']} {row['name']}: {row['measure']} {row['change']:+.4g} "
        f"[{row['low']:+.4g}, {row['high']:+.4g}]{sides}{q}{note}"
    )


def failed(flow: Any, flow_run: Any, state: Any) -> None:
    """A hook for a flow's `on_failure` and `on_crashed`: tell that the run failed, unless it was asked to stop."""
    from flows.align_spaces import Cancelled

    config = (flow_run.parameters or {}).get("config")
    if isinstance(config, dict):
        config = config.get("watch") or {}
    watch = config.watch if isinstance(config, RunConfig) else WatchConfig.model_validate(config or {})
    error = None
    with suppress(Exception):
        error = state.result(raise_on_failure=False)
    if watch.notify == "never" or isinstance(error, Cancelled):
        return
    reason = one_line(error) if isinstance(error, BaseException) else state.message or state.name
    run_id = flow_run.name or str(flow_run.id)
    send(run_id, "failed", f"run {run_id} {state.name.lower()}: {reason}", name=flow.name)


def create_automation(name: str = "suture: failed runs", *, flow: str = "align-spaces") -> str:
    """Let Prefect's server tell the webhook of every run of a flow that fails, crashes or goes missing; gives the id.

    For runs whose own process can say nothing any more. Made again it replaces the one of that name. The address is kept
    in a block of Prefect's, encrypted.

    Raises `UserError` where no webhook is configured.
    """
    from prefect.automations import Automation
    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.types import SecretDict
    from pydantic import SecretStr

    url = webhook()
    if url is None:
        raise UserError(f"no webhook is configured: set {URL}, or {URL}_FILE to a file that holds it")
    block = Webhook(method="POST", url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
    # Each of these is a coroutine where an event loop runs, and here none does.
    kept = cast(UUID, block.save("suture-webhook", overwrite=True))
    text = "('run ' ~ flow_run.name ~ ' ' ~ flow_run.state.name ~ ': ' ~ flow_run.state.message)"
    fields = {"text": text, "run": "flow_run.name", "name": "flow.name", "kind": "'failed'"}
    payload = "{" + ", ".join(f'"{key}": {{{{ {value} | tojson }}}}' for key, value in fields.items()) + "}"
    with suppress(ValueError):
        cast(Automation, Automation.read(name=name)).delete()
    made = Automation(
        name=name,
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": flow}),
            for_each={"prefect.resource.id"},
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=kept, payload=payload)],
    )
    return str(cast(Automation, made.create()).id)
