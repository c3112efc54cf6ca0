"""The server: one static page, and what it asks for. Made by `create_app`, run by `sam-gym play`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from sam_gym.annotate.session_folder import Taken
from sam_gym.web import annotating, playing, rating, watching
from sam_gym.web.model_queue import ModelQueue
from sam_gym.web.safety import LOOPBACK, guard

if TYPE_CHECKING:
    from sam_gym.sb3.saved import SavedAgent

STATIC = Path(__file__).resolve().parent / "static"


@dataclass(frozen=True)
class WebSettings:
    """What a server shows.

    Attributes:
        env_id: The environment that is played first.
        env_ids: Those that can be chosen.
        images: Folder of images to annotate, or None.
        out: Where annotations and choices are written.
        kinds: Names of classes.
        agent: The agent, or None.
        sam: checkpoint, device and precision, and for environments data.
        host: What it listens on.
        token: What it asks for, needed where it listens on another address than this machine's own.
    """

    env_id: str
    env_ids: Sequence[str]
    images: Path | None = None
    out: Path = Path("sam-gym-annotations")
    kinds: Sequence[str] = ("object",)
    agent: SavedAgent | None = None
    sam: dict[str, Any] = field(default_factory=dict)
    data: str = "auto"
    host: str = "127.0.0.1"
    token: str | None = None

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.token:
            raise ValueError(
                f"--host {self.host} lets others on the network in: give --token as well, which they have to know"
            )


def create_app(settings: WebSettings) -> FastAPI:
    """The server's app.

    Raises:
        ValueError: The folder of images has none; or others could come in without a token.
    """
    queue = ModelQueue()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    app = FastAPI(title="sam_gym", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    guard(app, settings.host, settings.token)

    @app.exception_handler(Taken)
    async def _taken(request: Request, error: Taken) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 409)

    @app.exception_handler(ValueError)
    async def _wrong(request: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(LookupError)
    async def _gone(request: Request, error: LookupError) -> JSONResponse:
        return JSONResponse({"error": str(error.args[0])}, 404)

    @app.exception_handler(RequestValidationError)
    async def _unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    @app.get("/api/status")
    async def _status() -> dict[str, Any]:
        return queue.status()

    @app.get("/api/config")
    async def _config() -> dict[str, Any]:
        return {
            "env_id": settings.env_id,
            "env_ids": list(settings.env_ids),
            "annotates": settings.images is not None,
            "folder": settings.images.name if settings.images else None,
            "kinds": list(settings.kinds),
            "agent": settings.agent.file.stem if settings.agent else None,
            "checkpoint": settings.sam.get("checkpoint"),
        }

    rooms = playing.Rooms(settings.sam, settings.data, settings.agent)
    app.include_router(playing.router(rooms, queue))
    app.include_router(watching.router(rooms, queue))
    app.include_router(rating.router(rooms, queue, settings.out / "choices.csv"))
    if settings.images is not None:
        app.include_router(annotating.router(settings, queue))

    @app.get("/")
    async def _page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app
