"""Runs the app until Ctrl-C, and says where the page is."""

from __future__ import annotations

import socket
from collections.abc import Callable
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI


def serve(app: FastAPI, host: str, port: int, token: str | None, say: Callable[[str], None]) -> None:
    """Serve an app.

    Args:
        app: The app.
        host: Address to listen on.
        port: Its port; 0 takes a free one.
        token: What is told in the address, after #, so that it stands in no log.
        say: Takes messages.

    Raises:
        ValueError: The address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()  # before the address is told: who comes early waits
        except OSError as error:
            reason = error.strerror or str(error)
            raise ValueError(f"cannot listen on {host}, port {port}: {reason}; choose another --port") from error
        shown = f"[{host}]" if ":" in host else host
        secret = f"#token={quote(token)}" if token else ""
        say(f"open http://{shown}:{listener.getsockname()[1]}/{secret} in a browser; Ctrl-C ends it")
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[listener])
