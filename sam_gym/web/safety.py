"""What the server refuses before anything else looks at a request. It listens to this machine's own pages only.

A page of another site can make a browser send requests here, by our address or by a name of its own that it points at
us (DNS rebinding). So the host that is asked for, and the page that asks, both have to be ours.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY = ("0.0.0.0", "::")
"""Addresses to listen on that stand for all of the machine's."""

LARGEST_REQUEST = 64 * 1024
"""Bytes. The page sends boxes and clicks; images are read from the folder."""

TOKEN_HEADER = "X-Sam-Gym-Token"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def guard(app: FastAPI, host: str, token: str | None) -> None:
    """Refuse requests from elsewhere, without the token, or too large.

    Args:
        app: The app.
        host: What it listens on.
        token: What requests to /api must carry, or None.
    """

    @app.middleware("http")
    async def _guarded(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        refusal = _refusal(request, host, token)
        response = await go_on(request) if refusal is None else JSONResponse({"error": refusal[1]}, refusal[0])
        response.headers.update(HEADERS)
        response.headers["Cache-Control"] = "no-store" if request.url.path.startswith("/api") else "no-cache"
        return response


def _refusal(request: Request, host: str, token: str | None) -> tuple[int, str] | None:
    headers = request.headers
    asked = _part(f"//{headers.get('host', '')}", "hostname")
    if host not in ANY and asked not in (host, *LOOPBACK):
        return 421, f"this server is asked for by the name {asked}, which is not its own"
    origin = headers.get("origin")
    if origin is not None and _part(origin, "netloc") != headers.get("host"):
        return 403, f"a page of {origin} asks; only the server's own page may"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return 403, "a page of another site asks; only the server's own page may"
    if request.method not in ("GET", "HEAD"):
        length = headers.get("content-length")
        if length is None or not length.isdecimal():
            return 411, "a request says how long it is (Content-Length)"
        if int(length) > LARGEST_REQUEST:
            return 413, f"a request has at most {LARGEST_REQUEST} bytes; this one has {length}"
    if token is not None and request.url.path.startswith("/api"):
        if not hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), token.encode()):
            return 401, "the token is missing or wrong: open the address that sam-gym play printed"
    return None


def _part(address: str, name: str) -> str | None:
    """A part of an address; None where it is none."""
    try:
        return getattr(urlsplit(address), name)
    except ValueError:
        return None
