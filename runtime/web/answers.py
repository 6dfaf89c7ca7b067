"""What the page's addresses have in common: bodies that are read within bounds, errors as one sentence, safe headers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from nnet_edge.errors import MissingExtraError
from nnet_edge.runtime.web.guard import Refusal
from nnet_edge.runtime.web.state import Health

try:
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
except ImportError as missing:
    raise MissingExtraError("starlette is not installed: pip install 'nnet-edge[web]'") from missing

LARGEST_BODY = 64 * 1024  # bytes: 32 polygons of 256 corners are less
BODY_LIMIT_S = 10.0
SAFE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class RefusedError(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


def told(health: Health, may_know_why: bool) -> Response:
    """Health as an answer."""
    fields: dict[str, object] = {"status": "ok" if health.is_good else "unavailable"}
    if may_know_why:
        fields["reasons"] = list(health.reasons)
    return JSONResponse(fields, status_code=200 if health.is_good else 503)


def sentence(status: int, text: str) -> Response:
    """An error as an answer: one sentence."""
    return JSONResponse({"error": " ".join(text.split())}, status_code=status)


def number_of(text: str | None) -> int:
    """A whole number from 0 on; 0 for anything else."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 18 else 0


async def body_of(request: Request) -> Mapping[str, Any]:
    """The JSON object in the body, of at most LARGEST_BODY bytes. Raises RefusedError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(Refusal(415, "send JSON, and say so: content-type: application/json"))
    body = bytearray()

    async def read() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > LARGEST_BODY:
                raise RefusedError(Refusal(413, f"the body has more than {LARGEST_BODY} bytes"))

    try:
        await asyncio.wait_for(read(), BODY_LIMIT_S)
        fields = json.loads(bytes(body) or b"{}")
    except asyncio.TimeoutError as error:
        raise RefusedError(Refusal(408, f"the body did not come within {BODY_LIMIT_S:g} s")) from error
    except (ValueError, RecursionError) as error:
        raise RefusedError(Refusal(400, "the body is no JSON")) from error
    if not isinstance(fields, dict):
        raise RefusedError(Refusal(400, "the body is no JSON object"))
    return fields
