"""`Session`: one image, a person and an agent, who make masks of its objects together. No web, no files.

An object begins with a box or a click. SAM makes a mask of it; the agent proposes clicks; the person clicks where the
mask is wrong, moves the box, undoes, accepts. Each object is an episode of the environments, to the same step function:
its mask follows from its box and its clicks alone. So these are all that is kept (`sam_gym.annotate.history`), and a
session that was stored gives the same masks again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_gym._utils.boxes import clip_box, tight_box
from sam_gym.annotate.history import (
    ACCEPT,
    AGENT,
    BEGIN,
    BOX,
    CLICK,
    KIND,
    PERSON,
    REDO,
    REMOVE,
    SELECT,
    UNDO,
    Click,
    Event,
    History,
    Object,
    clicks_of,
    table_row,
)  # fmt: skip
from sam_gym.annotate.segmenting import Segment, Segmenter, label_image, segment_of
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.keeping import LAST
from sam_gym.envs.observations import STATE
from sam_gym.sam.cache import content_key
from sam_gym.sam.prompts import PromptBatch

FORMAT = 1
"""Of stored sessions."""

MOST_CLICKS = 100
"""Clicks of an object: as many as an environment takes."""

MARGIN = 0.05
"""How much a box stands off the mask that a first click made, as a share of the mask's extent."""

ALONE = 0.1
"""Side of the box around a first click of which SAM makes no such mask, as a share of the image's longer side."""

LARGEST = 0.5
"""A mask of a first click that covers more of the image is no object, but what lies around all."""

REMEMBERED = 256
"""Masks of objects as they are and were that a session keeps, so that undoing is quick; others are made again."""


@dataclass(frozen=True)
class Export:
    """What a session comes to: its accepted objects.

    Attributes:
        labels: (H, W) uint16, 0 or an object's id; where objects overlap, the smaller one's.
        rows: Object id -> how its mask came about, for a table.
        segments: Object id -> its mask.
        objects: Object id -> the object.
    """

    labels: NDArray[np.uint16]
    rows: dict[int, dict[str, Any]]
    segments: dict[int, Segment]
    objects: dict[int, Object]


class Session:
    """Works on one image.

    Args:
        image: (H, W, 3) uint8.
        segmenter: SAM, and the agent that proposes, where there is one.
        name: What the image is called, as a path below its folder.
        log: Events of a session that was stored; they happen again.
        clock: Seconds, for the log.

    Attributes:
        history: What was done, and the objects.

    Raises:
        ValueError: The agent does not click; or the log is of no session.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        segmenter: Segmenter,
        name: str = "image",
        *,
        log: Sequence[Event] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_clicks(segmenter)
        self.image, self.name = image, name
        self.history = History(log)
        self._segmenter, self._clock = segmenter, clock
        self._budget = segmenter.environment(1, np.zeros((1, 1, 3), np.uint8), np.zeros((0, 4))).settings.max_prompts
        self._env = session_env(segmenter, image)
        self._at: tuple[Any, tuple] | None = None  # box and clicks of the episode as it stands
        self._made: OrderedDict[tuple, Segment] = OrderedDict()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def objects(self) -> tuple[Object, ...]:
        """All objects, by id."""
        return self.history.state.objects

    @property
    def active(self) -> Object | None:
        """The object that is worked on."""
        state = self.history.state
        return None if state.active is None else state.find(state.active)

    # ------------------------------------------------------------- what one does

    def begin_box(self, box: Sequence[float], kind: int = 1) -> int:
        """A new object in a box (x0, y0, x1, y1 in pixels of the image; cut to it). Its id."""
        return self._begin(self._checked_box(box), [], kind)

    def begin_click(self, x: float, y: float, kind: int = 1) -> int:
        """A new object at a click: SAM's mask of the click alone gives its box, and the click is its first. Its id."""
        click = self._checked_click(x, y, 1)
        return self._begin(self._box_at(click), [click], kind)

    def click(self, x: float, y: float, label: int) -> None:
        """A click of the person in the active object: 1 it belongs to it, 0 it does not. Anywhere in the image."""
        click = self._checked_click(x, y, label)
        if len(self._chosen().clicks) >= MOST_CLICKS:
            raise ValueError(f"an object takes {MOST_CLICKS} clicks; this one has them")
        self._do({"do": CLICK, "clicks": clicks_of([click])})

    def move_box(self, box: Sequence[float]) -> None:
        """Another box for the active object; its clicks are made again in it."""
        self._chosen()
        self._do({"do": BOX, "box": self._checked_box(box)})

    def agent_step(self) -> Click | None:
        """The agent's next click; None where it would stop, and nothing changes."""
        one = self._chosen()
        click = self._proposal(one)
        if click is not None:
            self._do({"do": CLICK, "clicks": clicks_of([click])})
        return click

    def agent_run(self) -> list[Click]:
        """The agent clicks until it would stop or has no prompts left; undone as one.

        Of the masks on the way, where it has learned to judge them, the one that it thinks best is kept, with the
        clicks that led there.
        """
        before = self._chosen()
        judge = getattr(self._segmenter.prompter, "judge", None)
        trial, judged = before, [self._judged(judge, before)]
        for _ in range(self._left(before)):
            if (click := self._proposal(trial)) is None:
                break
            trial = Object(trial.id, trial.box, (*trial.clicks, click))
            judged.append(self._judged(judge, trial))
        kept = int(np.argmax(judged)) if judge is not None else len(judged) - 1
        clicks = list(trial.clicks[len(before.clicks) :][:kept])
        if clicks:
            self._do({"do": CLICK, "clicks": clicks_of(clicks)})
        return clicks

    def accept(self) -> int:
        """The active object is as it should be. Its id; no object is active then.

        Raises:
            ValueError: Its mask is empty, or no object is active.
        """
        one = self._chosen()
        if not self.segment(one.id).area:
            raise ValueError(f"the mask of object {one.id} is empty: click on it, or remove it")
        self._do({"do": ACCEPT})
        return one.id

    def select(self, object_id: int) -> None:
        """Work on another object."""
        self._do({"do": SELECT, "object": object_id})

    def remove(self) -> None:
        """Take the active object away."""
        self._chosen()
        self._do({"do": REMOVE})

    def set_kind(self, kind: int) -> None:
        """The class of the active object, 1, 2, ..."""
        self._chosen()
        self._do({"do": KIND, "kind": _checked_kind(kind)})

    def undo(self) -> None:
        """Take the last thing back, whatever it was."""
        self._do({"do": UNDO})

    def redo(self) -> None:
        """Do again what was taken back last."""
        self._do({"do": REDO})

    # ------------------------------------------------------------ what comes of it

    def segment(self, object_id: int | None = None) -> Segment:
        """The mask of an object, by default the active one, cut to its rectangle, with SAM's estimate of its IoU."""
        one = self._chosen() if object_id is None else self.history.state.find(object_id)
        return self._segment(one)

    def mask(self, object_id: int | None = None) -> NDArray[np.bool_]:
        """(H, W) bool: the mask of an object, by default the active one."""
        labels = np.zeros(self.size, np.uint8)
        self.segment(object_id).paint(labels, 1)
        return labels > 0

    def export(self) -> Export:
        """The accepted objects."""
        objects = {one.id: one for one in self.objects if one.accepted}
        segments = {number: self._segment(one) for number, one in objects.items()}
        work = self.history.work()
        rows = {number: table_row(one, segments[number], work[number]) for number, one in objects.items()}
        return Export(label_image(self.size, list(segments), list(segments.values())), rows, segments, objects)

    def to_json(self) -> dict[str, Any]:
        """All of the session but the image, as a JSON object; `Session.load` takes it."""
        return {
            "format": FORMAT,
            "image": self.name,
            "size": list(self.size),
            "sha256": content_key(self.image),
            "made_with": self._segmenter.provenance(),
            "objects": [one.to_json() for one in self.objects],
            "log": self.history.log,
        }

    @classmethod
    def load(cls, stored: Mapping[str, Any], image: NDArray[np.uint8], segmenter: Segmenter) -> Session:
        """The session that was stored.

        Raises:
            ValueError: It is none, or is of another image.
        """
        if stored.get("format") != FORMAT:
            raise ValueError(f"this is no session of format {FORMAT}: its format is {stored.get('format')!r}")
        if stored["sha256"] != content_key(image):
            raise ValueError(
                f"the session is of other pixels than {stored['image']} has now: take the old image, or move the "
                "session's file away to begin anew"
            )
        return cls(image, segmenter, stored["image"], log=stored["log"])

    # ---------------------------------------------------------------------- inside

    def _do(self, event: Event) -> None:
        self.history.do({**event, "at": round(self._clock(), 3)})

    def _chosen(self) -> Object:
        if self.active is None:
            raise ValueError("no object is chosen: draw a box, click, or select one")
        return self.active

    def _begin(self, box: Sequence[float], clicks: list[Click], kind: int) -> int:
        self._do({"do": BEGIN, "box": list(box), "clicks": clicks_of(clicks), "kind": _checked_kind(kind)})
        return self._chosen().id

    def _checked_box(self, box: Sequence[float]) -> list[float]:
        values = np.asarray(box, np.float64)
        if values.shape != (4,) or not np.isfinite(values).all():
            raise ValueError(f"a box is four numbers x0, y0, x1, y1, got {box!r}")
        return clip_box(values, self.size).tolist()

    def _checked_click(self, x: float, y: float, label: int) -> Click:
        height, width = self.size
        if not (0 <= x <= width and 0 <= y <= height):  # NaN fails the comparison too
            raise ValueError(f"the click {x:g}, {y:g} lies outside the image of {width} x {height} px")
        if label not in (0, 1):
            raise ValueError(f"the label of a click is 1 (foreground) or 0 (background), got {label!r}")
        return Click(float(x), float(y), int(label), PERSON)

    def _box_at(self, click: Click) -> list[float]:
        """The box of what SAM takes a click for: of its masks of a part of the image, the most trusted one."""
        backend = self._segmenter.backend
        prompts = PromptBatch.from_lists(points=[[[click.x - 0.5, click.y - 0.5]]], labels=[[1]])
        made = backend.decode(backend.encode([self.image]), prompts, multimask=True, full=True)
        assert made.full is not None, "it was asked for"
        trusted, masks = made.predicted_iou[0].cpu().numpy(), made.full[0].cpu().numpy()
        parts = [k for k in np.argsort(-trusted) if 0 < masks[k].mean() < LARGEST]
        box = tight_box(masks[parts[0]]) if parts else None
        if box is None:
            half = ALONE / 2 * max(self.size)
            return clip_box(
                np.array([click.x - half, click.y - half, click.x + half, click.y + half]), self.size
            ).tolist()
        off = MARGIN * np.array([box[0] - box[2], box[1] - box[3], box[2] - box[0], box[3] - box[1]])
        return clip_box(box + off, self.size).tolist()

    def _bring(self, one: Object) -> None:
        """Bring the running episode to the prompts of an object, on from where it stands if that is on the way."""
        box, clicks = one.prompts
        if self._at is None or self._at[0] != box or self._at[1] != clicks[: len(self._at[1])]:
            self._env.begin_rows({0: {"image": 0, "object": 1, "cue": box}})
            self._note(box, ())
        assert self._at is not None, "it has begun"
        for number in range(len(self._at[1]), len(clicks)):
            x, y, label = clicks[number]
            self._env.click_row(0, (x, y), label)
            self._note(box, clicks[: number + 1])

    def _note(self, box: Any, clicks: tuple) -> None:
        self._at = box, clicks
        estimate = float(self._env.observations()["state"][0, STATE.index("predicted_iou")])
        self._remember(self._at, segment_of(self._env.mask(0), estimate, len(clicks)))

    def _remember(self, key: tuple, segment: Segment) -> None:
        self._made[key] = segment
        self._made.move_to_end(key)
        while len(self._made) > REMEMBERED:
            self._made.popitem(last=False)

    def _segment(self, one: Object) -> Segment:
        if one.prompts not in self._made:
            self._bring(one)
            if one.prompts not in self._made:  # the episode stood there already, and its mask was forgotten
                self._note(*one.prompts)
        return self._made[one.prompts]

    def _left(self, one: Object) -> int:
        """Prompts that the agent may still give: all clicks count as its own would, but one is always left."""
        return max(1, self._budget - len(one.clicks))

    def _observed(self, one: Object) -> dict[str, NDArray]:
        """What the agent sees of an object, as in an environment of its own number of prompts."""
        self._bring(one)
        seen = self._env.observations()
        seen["state"][:, STATE.index("prompts_left")] = self._left(one) / self._budget
        if "clicks" in seen:  # by reference there is room for its own number of clicks
            seen["clicks"] = seen["clicks"][:, max(0, len(one.clicks) - self._budget) :][:, : self._budget]
        return seen

    def _judged(self, judge: Any, one: Object) -> float:
        return 0.0 if judge is None else float(judge(self._observed(one))[0])

    def _proposal(self, one: Object) -> Click | None:
        """What the agent would do next: a click, or None for stop."""
        if len(one.clicks) >= MOST_CLICKS:
            return None
        env = self._env
        action = self._segmenter.prompter(self._observed(one), env)
        trial = env.episodes.at(np.zeros(1, np.intp))
        env.actions.apply(trial, np.zeros(1, np.intp), action)
        if trial.stopped[0]:
            return None
        x, y = trial.points[0, len(one.clicks)].astype(np.float64) + 0.5
        return Click(float(x), float(y), int(trial.labels[0, len(one.clicks)]), AGENT)


def session_env(segmenter: Segmenter, image: NDArray[np.uint8]) -> EngineVectorEnv:
    """One episode on an image, quick, with room for the clicks of a person."""
    attention = "full" if segmenter.backend.precision == "official" else "foveated"
    whole = [[0, 0, image.shape[1], image.shape[0]]]
    return segmenter.environment(1, image, whole, max_prompts=MOST_CLICKS, attention=attention, returns=LAST)


def check_clicks(segmenter: Segmenter) -> None:
    """Raise ValueError unless a segmenter's agent clicks."""
    mode = segmenter.settings.get("action_mode", "grid")
    if mode not in ("grid", "point"):
        raise ValueError(
            f"this agent acts in action mode {mode!r}: a session needs one that clicks ('grid' or 'point'), such as "
            "the agent of the package"
        )


def _checked_kind(kind: int) -> int:
    if not isinstance(kind, int) or not 1 <= kind <= 255:
        raise ValueError(f"a class is a whole number from 1 to 255, got {kind!r}")
    return kind
