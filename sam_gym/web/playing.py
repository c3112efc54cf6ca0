"""Play: a person acts in an environment as an agent would, and sees what others get on the same object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.box_refine import SideMoves
from sam_gym.envs.episode import GridActions
from sam_gym.envs.prefer import Choices, PreferEngine
from sam_gym.web.model_queue import ModelQueue
from sam_gym.web.rooms import Kept, Rooms, drawn_seed, play_through
from sam_gym.web.wire import mask_of, number, numbers, picture, stretched

OTHERS = ("agent", "box only", "given mask", "no prompt", "own estimate", "iterative box")
"""Whose results are shown beside the person's, where they are there; the oracle always is."""


class Pose(BaseModel):
    """An episode to begin; drawn where nothing is said."""

    env_id: str = Field(max_length=100)
    seed: int | None = Field(None, ge=0, lt=2**31)


class Move(BaseModel):
    """One action: a cell and a label, or a box, or a candidate; or stop."""

    game: str = Field(max_length=64)
    cell: int | None = None
    label: int = 1
    box: tuple[float, float, float, float] | None = None
    candidate: int | None = None
    stop: bool = False


@dataclass
class Game:
    """An episode that a person plays."""

    env_id: str
    env: EngineVectorEnv
    seed: int
    curve: list[float] = field(default_factory=list)
    others: dict[str, float] = field(default_factory=dict)

    @classmethod
    def begin(cls, rooms: Rooms, pose: Pose) -> Game:
        """The episode that is asked for; its seed is drawn where none is."""
        game = cls(pose.env_id, rooms.open(pose.env_id), drawn_seed() if pose.seed is None else pose.seed)
        game.env.reset(seed=game.seed)
        return game


def router(rooms: Rooms, queue: ModelQueue) -> APIRouter:
    """The routes."""
    routes, games = APIRouter(prefix="/api/play"), Kept[Game]()

    @routes.post("/new")
    async def _new(pose: Pose) -> dict[str, Any]:
        def begin() -> Game:
            game = Game.begin(rooms, pose)
            game.curve.append(float(game.env.quality.iou[0]))
            return game

        game = await queue.run("encode", begin)
        return {"game": games.put(game), **shown(game)}

    @routes.post("/act")
    async def _act(move: Move) -> dict[str, Any]:
        game = games.get(move.game)

        def work() -> dict[str, Any]:
            env = game.env
            if env.episodes.terminated[0]:
                raise ValueError("this episode has ended: begin another one")
            env.step(np.asarray(_action(env, move))[None])
            game.curve.append(float(env.quality.iou[0]))
            return shown(game)

        return await queue.run("decode", work)

    @routes.post("/others")
    async def _others(move: Move) -> dict[str, Any]:
        """What others get on the same object; asked for once the episode has ended."""
        game = games.get(move.game)

        def work() -> dict[str, Any]:
            if not game.env.episodes.terminated[0]:
                raise ValueError("end the episode first")
            names = list(rooms.prompters(game.env_id))
            for name in names:
                if (name in OTHERS or name == names[-1]) and name not in game.others:
                    env, prompter = rooms.seat(game.env_id, name)
                    game.others[name] = play_through(env, prompter, game.seed)
            return {"others": {name: number(iou) for name, iou in game.others.items()}}

        return await queue.run("others", work)

    @routes.get("/pixels")
    async def _pixels(game: str) -> Response:
        env = games.get(game).env
        return picture(stretched(env.data.image(int(env.episodes.image[0]))))

    return routes


def _action(env: EngineVectorEnv, move: Move) -> Any:
    """What a person means, as the environment takes it.

    Raises:
        ValueError: The environment has no such action, or does not allow it now.
    """
    actions = env.actions
    if move.stop:
        if actions.stop is None:
            raise ValueError("there is no stop here: pick a mask")
        return actions.stop
    if isinstance(actions, GridActions):
        if move.cell is None or not 0 <= move.cell < actions.cells or move.label not in (0, 1):
            raise ValueError(f"a click is a cell from 0 to {actions.cells - 1} and a label, 1 or 0")
        action = move.cell if move.label else move.cell + actions.cells
        if not env.action_masks()[0, action]:
            raise ValueError("this cell was clicked before, or lies outside of the image")
        return action
    if isinstance(actions, SideMoves):
        if move.box is None:
            raise ValueError("here one moves the sides of the box")
        return actions.toward(env.episodes.box, np.array([move.box], np.float32))[0]
    if isinstance(actions, Choices):
        if move.candidate is None:
            raise ValueError("here one picks a candidate, 0 to 3")
        return move.candidate
    raise ValueError(f"action_mode={env.settings.action_mode!r} cannot be played in the page")


def shown(game: Game) -> dict[str, Any]:
    """An episode as the page draws it; the truth only once it has ended."""
    env, episodes = game.env, game.env.episodes
    kinds = {GridActions: "clicks", SideMoves: "box", Choices: "choice"}
    info, ended = env.info(0), bool(episodes.terminated[0])
    points, labels = episodes.all_points[0], episodes.all_labels[0]
    height, width = env.data.image(int(episodes.image[0])).shape[:2]
    cells = env.actions if isinstance(env.actions, GridActions) else None
    return {
        "env_id": game.env_id,
        "seed": game.seed,
        "kind": kinds.get(type(env.actions), "none"),
        "image": info["image"],
        "object": info["object"],
        "source": info["source"],
        "target": info.get("text"),
        "width": width,
        "height": height,
        "view": numbers(episodes.view[0]),
        "cue": numbers(episodes.cue[0]) if env.settings.has_cue else None,
        "box": numbers(episodes.box[0]) if env.settings.has_cue else None,
        "grid": env.settings.grid,
        "free": env.action_masks()[0, : cells.cells].tolist() if cells else None,
        "clicks": [
            [float(x) + 0.5, float(y) + 0.5, int(one)] for (x, y), one in zip(points, labels, strict=True) if one >= 0
        ],
        "prompts": info["prompts"],
        "max_prompts": env.settings.max_prompts,
        "iou": number(info["iou"]),
        "curve": [number(iou) for iou in game.curve],
        "mask": mask_of(env.mask(0)),
        "offers": offers(env),
        "ended": ended,
        "truth": mask_of(env.truth(0)) if ended else None,
    }


def offers(env: EngineVectorEnv) -> list[dict[str, Any]] | None:
    """The candidates, where one is picked."""
    engine = env.engine
    if not isinstance(engine, PreferEngine) or env.episodes.terminated[0]:
        return None
    return [mask_of(engine.offered_mask(0, k)) for k in range(len(engine.episodes.offered_boxes[0]))]
