"""Annotate: the page's requests to sessions on a folder of images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, Field

from sam_gym.annotate import Segmenter, Session
from sam_gym.annotate.history import Object
from sam_gym.annotate.session_folder import SessionFolder
from sam_gym.data import read_image
from sam_gym.data.images import open_pixels
from sam_gym.web.model_queue import ModelQueue
from sam_gym.web.wire import number, picture, runs_of, stretched

if TYPE_CHECKING:
    from sam_gym.web.app import WebSettings

OPEN = 16
"""Sessions that are held in memory; others are read again from where they were saved."""

Coordinate = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Browser = Annotated[str, Header(alias="X-Sam-Gym-Browser", min_length=8, max_length=64)]
Person = Annotated[str, Header(alias="X-Sam-Gym-Person", max_length=64)]
"""Percent-encoded, since headers are no Unicode."""


class Which(BaseModel):
    """An image."""

    image: str = Field(max_length=1024)


class Act(Which):
    """Something that a person does; of the rest, each act needs its own part."""

    act: str = Field(max_length=16)
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = None
    x: Coordinate | None = None
    y: Coordinate | None = None
    label: int = 1
    object: int | None = None
    kind: int = 1


ACTS: dict[str, Callable[[Session, Any], Any]] = {
    "begin_box": lambda session, act: session.begin_box(_need(act.box, "box"), act.kind),
    "begin_click": lambda session, act: session.begin_click(_need(act.x, "x"), _need(act.y, "y"), act.kind),
    "click": lambda session, act: session.click(_need(act.x, "x"), _need(act.y, "y"), act.label),
    "move_box": lambda session, act: session.move_box(_need(act.box, "box")),
    "agent_step": lambda session, act: session.agent_step(),
    "agent_run": lambda session, act: session.agent_run(),
    "accept": lambda session, act: session.accept(),
    "select": lambda session, act: session.select(_need(act.object, "object")),
    "remove": lambda session, act: session.remove(),
    "kind": lambda session, act: session.set_kind(act.kind),
    "undo": lambda session, act: session.undo(),
    "redo": lambda session, act: session.redo(),
}


@dataclass
class _Open:
    session: Session
    browser: str


def router(settings: WebSettings, queue: ModelQueue) -> APIRouter:
    """The routes."""
    assert settings.images is not None, "else there is nothing to annotate"
    folder = SessionFolder(settings.images, settings.out, settings.kinds)
    routes = APIRouter(prefix="/api/annotate")
    sessions: OrderedDict[str, _Open] = OrderedDict()

    @cache
    def segmenter() -> Segmenter:
        return Segmenter(settings.agent, **settings.sam)

    @routes.get("/images")
    async def _images(browser: Browser) -> list[dict[str, Any]]:
        return folder.overview(browser)

    @routes.get("/pixels")
    async def _pixels(image: str, low: float = 0.1, high: float = 99.9) -> Response:
        if not 0 <= low < high <= 100:
            raise ValueError(f"contrast goes from 0 <= low < high <= 100 percent, got {low:g} and {high:g}")
        return picture(stretched(open_pixels(folder.path(image)), low, high))

    @routes.post("/open")
    async def _open(which: Which, browser: Browser, person: Person = "") -> dict[str, Any]:
        path = folder.path(which.image)
        folder.claim(which.image, browser, unquote(person))
        there = sessions.get(which.image)
        if there is None or there.browser != browser:

            def begin() -> Session:
                stored, pixels = folder.stored(which.image), read_image(path)
                segmenter().backend.encode([pixels])
                if stored is None:
                    return Session(pixels, segmenter(), which.image)
                return Session.load(stored, pixels, segmenter())

            sessions[which.image] = there = _Open(await queue.run("encode", begin), browser)
            while len(sessions) > OPEN:
                sessions.popitem(last=False)
        return await queue.run("masks", lambda: _shown(there.session, masks=True))

    @routes.post("/act")
    async def _act(act: Act, browser: Browser, person: Person = "") -> dict[str, Any]:
        there = sessions.get(act.image)
        if there is None or there.browser != browser:
            raise LookupError(f"{act.image} is not open: open it first")
        if act.act not in ACTS:
            raise ValueError(f"there is no act {act.act!r}; there are {', '.join(ACTS)}")
        folder.claim(act.image, browser, unquote(person))

        def work() -> dict[str, Any]:
            session = there.session
            before = {one for one in session.objects if one.accepted}
            ACTS[act.act](session, act)
            after = {one for one in session.objects if one.accepted}
            folder.save(session, browser, unquote(person), masks=before != after)
            return _shown(session, masks=False)

        return await queue.run("decode", work)

    @routes.get("/mask")
    async def _mask(image: str, object: int, browser: Browser) -> dict[str, Any]:
        there = sessions.get(image)
        if there is None or there.browser != browser:
            raise LookupError(f"{image} is not open: open it first")
        return await queue.run("decode", lambda: runs_of(there.session.segment(object)))

    @routes.post("/close")
    async def _close(which: Which, browser: Browser) -> dict[str, Any]:
        folder.path(which.image)
        folder.release(which.image, browser)
        if (there := sessions.get(which.image)) is not None and there.browser == browser:
            del sessions[which.image]
        return {}

    return routes


def _shown(session: Session, *, masks: bool) -> dict[str, Any]:
    """A session as the page draws it, with the mask of the active object, or of all."""
    active = session.active
    height, width = session.size
    wanted = session.objects if masks else () if active is None else (active,)
    return {
        "image": session.name,
        "width": width,
        "height": height,
        "active": None if active is None else active.id,
        "objects": [{**one.to_json(), "key": _key(one)} for one in session.objects],
        "masks": {_key(one): runs_of(session.segment(one.id)) for one in wanted},
        "predicted": None if active is None else number(session.segment().predicted_iou),
        "undoable": session.history.undoable,
        "redoable": session.history.redoable,
    }


def _key(one: Object) -> str:
    """Equal for equal masks."""
    return f"{hash(one.prompts) & 0xFFFFFFFFFFFF:x}"


def _need(value: Any, name: str) -> Any:
    if value is None:
        raise ValueError(f"this act needs {name}")
    return value
