"""Stored sessions of people (`sam_gym.annotate.Session`) as states with labels, which `Cloner` learns from.

Where a person clicked, that click is what a policy should have done; where a person accepted a mask, it should have
stopped. The accepted mask stands for the truth: by it the value head's returns are measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_gym.annotate import Object, Segmenter, Session
from sam_gym.annotate.history import PERSON
from sam_gym.data import SegmentationData, read_image
from sam_gym.envs.episode import GridActions
from sam_gym.envs.prompt import SamPromptVectorEnv
from sam_gym.sb3.cloning import Samples, discounted, joined

SAM_SETTINGS = ("checkpoint", "device", "precision")


def read_demonstrations(
    files: Iterable[Path], images: Path, settings: Mapping[str, Any], *, gamma: float, reward_scale: float
) -> Samples:
    """The labelled states of stored sessions.

    Clicks become the cells of the grid that they lie in. A click outside of the view, or in a cell that was clicked
    before, teaches nothing, nor does what lies beyond `max_prompts` clicks.

    Args:
        files: Sessions, as `sam-gym play --images` writes them into `sessions/`.
        images: Folder of their images.
        settings: Of the training environment, a SamPrompt in grid mode: grid, max_prompts, checkpoint ...
        gamma: Discount of the returns.
        reward_scale: What rewards are multiplied by.

    Raises:
        ValueError: A file is no session, or its image has changed; or no object was accepted anywhere.
    """
    sam = {name: settings[name] for name in SAM_SETTINGS if name in settings}
    segmenter = Segmenter(**sam)
    parts: list[Samples] = []
    for file in sorted(files):
        stored = json.loads(file.read_text(encoding="utf-8"))
        session = Session.load(stored, read_image(images / stored["image"]), segmenter)
        for one in session.objects:
            if one.accepted:
                parts += _samples(session, one, settings, gamma, reward_scale)
    if not parts:
        raise ValueError(f"no object of the sessions of {images} was accepted: there is nothing to learn from")
    return joined(parts)


def _samples(
    session: Session, one: Object, settings: Mapping[str, Any], gamma: float, scale: float
) -> Iterator[Samples]:
    """The states of one object in which the person showed what to do; nothing where there is none."""
    labels = session.mask(one.id).astype(np.int32)
    limits = {"min_area": 1, "max_area": labels.size}
    data = SegmentationData("sessions", "train", "sessions", [session.name], [session.image], [labels], **limits)
    env = SamPromptVectorEnv(1, autoreset_mode="Disabled", images=data, **{**settings, "observation": "full"})
    if not isinstance(env.actions, GridActions):
        raise ValueError(f"people's clicks teach action_mode='grid', not {env.settings.action_mode!r}")
    actions, clicks = env.actions, one.clicks[: env.settings.max_prompts]
    seen, rows, iou = env.begin_rows({0: {"image": 0, "object": 1, "cue": one.box}}), [], [env.quality.iou[0]]
    embedding = seen["embedding"].astype(np.float16)
    for step, click in enumerate(clicks):
        cell = actions.cell_at(env.episodes, 0, np.array([click.x, click.y]))
        action = None if cell is None else cell + (0 if click.label else actions.cells)
        rows.append(_row(seen, env.action_masks()[0], action if click.by == PERSON else None, step))
        seen = env.click_row(0, (click.x, click.y), click.label)
        iou.append(env.quality.iou[0])
    if len(clicks) == len(one.clicks) < env.settings.max_prompts:
        rows.append(_row(seen, env.action_masks()[0], actions.stop, len(clicks)))
        iou.append(iou[-1])
    rewards = scale * np.diff(iou)[:, None]
    ended = np.arange(len(rewards))[:, None] == len(rewards) - 1
    returns = discounted(rewards, ended, gamma)[0][:, 0] if len(rewards) else np.zeros(0, np.float32)
    if shown := [row for row in rows if row is not None]:
        maps, state, allowed, target, steps = (np.stack(column) for column in zip(*shown, strict=True))
        n = len(shown)
        whole = np.ones(n, np.bool_)
        yield Samples(maps, state, allowed, target, returns[steps], whole, np.zeros(n, np.int64), embedding)


def _row(
    seen: dict[str, NDArray], allowed: NDArray[np.bool_], action: int | None, step: int
) -> tuple[NDArray, NDArray, NDArray, NDArray, int] | None:
    """Maps, state, what is allowed, the target distribution, and the step; None where nothing is shown."""
    if action is None or not allowed[action]:
        return None
    target = np.zeros(len(allowed), np.float16)
    target[action] = 1
    return seen["maps"][0], seen["state"][0], allowed, target, step
