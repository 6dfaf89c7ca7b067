"""One HTTP request to a server of this machine."""

from __future__ import annotations

import http.client
import json
from typing import Any


def ask(
    port: int, path: str, method: str, body: bytes | None, headers: dict[str, str], timeout_s: float
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Status, content (JSON where it is) and headers of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        is_json = (answer.headers.get("content-type") or "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content, answer.headers
    finally:
        connection.close()
