"""What was done to the objects of an image, as a list of events; and what the objects are after them.

An event is a JSON object. The same events give the same objects, so that they are all that has to be kept. No SAM here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

Event = dict[str, Any]

PERSON, AGENT = "person", "agent"
"""Who clicked."""

IDLE = 60.0
"""Seconds between two events that count as work at most; who is away longer does something else."""

BEGIN, CLICK, BOX, ACCEPT, SELECT, REMOVE, KIND = "begin", "click", "box", "accept", "select", "remove", "kind"
UNDO, REDO = "undo", "redo"


@dataclass(frozen=True)
class Click:
    """One click.

    Attributes:
        x, y: In pixels of the image; pixel (i, j) covers [j, j + 1) x [i, i + 1).
        label: 1 foreground, 0 background.
        by: "person" or "agent".
    """

    x: float
    y: float
    label: int
    by: str = PERSON


@dataclass(frozen=True)
class Object:
    """One object: where it begins, and the clicks since. Its mask follows from these and is not kept here.

    Attributes:
        id: 1, 2, ...; the value of its pixels in label images. No id is given twice.
        box: x0, y0, x1, y1 in pixels of the image.
        clicks: In the order in which they were made.
        kind: Its class, 1, 2, ...
        accepted: Whether the person is content with it.
        pointed: Whether it began with a click, of which SAM made the box.
    """

    id: int
    box: tuple[float, float, float, float]
    clicks: tuple[Click, ...] = ()
    kind: int = 1
    accepted: bool = False
    pointed: bool = False

    @property
    def prompts(self) -> tuple[Any, ...]:
        """What its mask follows from."""
        return self.box, tuple((one.x, one.y, one.label) for one in self.clicks)

    def to_json(self) -> dict[str, Any]:
        """It as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class State:
    """All objects of an image, by id, and the one that is worked on, or None."""

    objects: tuple[Object, ...] = ()
    active: int | None = None

    def find(self, object_id: int) -> Object:
        """The object of an id; ValueError if there is none."""
        for one in self.objects:
            if one.id == object_id:
                return one
        raise ValueError(f"there is no object {object_id}; there are {[one.id for one in self.objects]}")


class History:
    """Events so far, what they came to, and what can be undone and redone.

    Attributes:
        state: The objects as they are.
        log: All events, in order; undoing adds to them as everything does.
    """

    def __init__(self, log: Iterable[Event] = ()) -> None:
        self.state = State()
        self.log: list[Event] = []
        self._past: list[State] = []
        self._future: list[State] = []
        self._last_id = 0
        for event in log:
            self.do(event)

    @property
    def undoable(self) -> bool:
        """Whether there is something to undo."""
        return bool(self._past)

    @property
    def redoable(self) -> bool:
        """Whether something was undone, and nothing done since."""
        return bool(self._future)

    def do(self, event: Event) -> None:
        """Make one event happen.

        Raises:
            ValueError: It is none, or cannot happen now.
        """
        what = event.get("do")
        if what == UNDO:
            self._move(self._past, self._future, "undo")
        elif what == REDO:
            self._move(self._future, self._past, "redo")
        elif what == SELECT:  # where one looks is not undone by itself
            self.state = replace(self.state, active=self.state.find(int(event["object"])).id)
        else:
            after = self._after(what, event)
            self._past.append(self.state)
            self._future.clear()
            self.state = after
        self.log.append(event)

    def _move(self, source: list[State], target: list[State], what: str) -> None:
        if not source:
            raise ValueError(f"there is nothing to {what}")
        target.append(self.state)
        self.state = source.pop()

    def _after(self, what: Any, event: Event) -> State:
        if what == BEGIN:
            self._last_id += 1
            clicks = tuple(Click(**one) for one in event["clicks"])
            one = Object(self._last_id, _box(event["box"]), clicks, int(event["kind"]), pointed=bool(clicks))
            return State((*self.state.objects, one), one.id)
        if self.state.active is None:
            raise ValueError("no object is chosen: draw a box, click, or select one")
        one = self.state.find(self.state.active)
        if what == REMOVE:
            return State(tuple(other for other in self.state.objects if other.id != one.id))
        if what == CLICK:
            clicks = tuple(Click(**click) for click in event["clicks"])
            changed = replace(one, clicks=one.clicks + clicks, accepted=False)
        elif what == BOX:
            changed = replace(one, box=_box(event["box"]), accepted=False)
        elif what == KIND:
            changed = replace(one, kind=int(event["kind"]))
        elif what == ACCEPT:
            changed = replace(one, accepted=True)
        else:
            raise ValueError(f"{what!r} is no event")
        objects = tuple(changed if other.id == one.id else other for other in self.state.objects)
        return State(objects, None if what == ACCEPT else one.id)

    def work(self) -> dict[int, dict[str, Any]]:
        """Object id -> what was done for it: `seconds`, `undone` (times), `moved` (times its box was).

        Time counts for the object that was worked on when it passed, up to `IDLE` between two events.
        """
        done = {one.id: {"seconds": 0.0, "undone": 0, "moved": 0} for one in self.state.objects}
        replayed, last = History(), None
        for event in self.log:
            before = replayed.state.active
            replayed.do(event)
            who = before if replayed.state.active is None or event["do"] == SELECT else replayed.state.active
            if who in done:
                done[who]["seconds"] += 0.0 if last is None else min(IDLE, max(0.0, event["at"] - last))
                done[who]["undone"] += event["do"] == UNDO
                done[who]["moved"] += event["do"] == BOX
            last = event["at"]
        return done


def _box(values: Iterable[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


def clicks_of(clicks: Iterable[Click]) -> list[Mapping[str, Any]]:
    """Clicks as an event holds them."""
    return [asdict(one) for one in clicks]


def table_row(one: Object, segment: Any, work: Mapping[str, Any]) -> dict[str, Any]:
    """How the mask of an object, a `Segment`, came about; `work` is what `History.work` says of it."""
    person = sum(click.by == PERSON for click in one.clicks)
    corrected = person > one.pointed or work["moved"]
    return {
        "kind": one.kind,
        "began": "click" if one.pointed else "box",
        "how": "corrected" if corrected else "as proposed",
        "clicks_person": person,
        "clicks_agent": len(one.clicks) - person,
        "boxes_moved": work["moved"],
        "undone": work["undone"],
        "seconds": round(work["seconds"], 1),
        "area": segment.area,
        "predicted_iou": round(segment.predicted_iou, 4),
    }
