"""Rate: four masks of an object, of which a person picks the best; written as `sam_gym.sam.preference` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field

from sam_gym.envs.prefer import PreferEngine
from sam_gym.sam.choices import Comparison, append_choice
from sam_gym.web.model_queue import ModelQueue
from sam_gym.web.playing import Game, Pose, shown
from sam_gym.web.rooms import Kept, Rooms
from sam_gym.web.wire import picture, stretched

TASK = "SamPrefer"

TOLD = ("image", "object", "source", "width", "height", "view", "offers", "prompts", "max_prompts", "ended")
"""What a rater is told of an episode: nothing that was measured with the truth."""


class Choice(BaseModel):
    """The best candidate, 0 to 3; None: none is better than the others."""

    rating: str = Field(max_length=64)
    choice: int | None = Field(None, ge=0, le=3)


def router(rooms: Rooms, queue: ModelQueue, file: Path) -> APIRouter:
    """The routes; choices are written to `file`."""
    routes, ratings = APIRouter(prefix="/api/rate"), Kept[Game]()

    @routes.post("/new")
    async def _new(pose: Pose) -> dict[str, Any]:
        if pose.env_id.partition("-")[0] != TASK:
            raise ValueError(f"masks are rated in environments of {TASK}, not in {pose.env_id}")
        game = await queue.run("encode", lambda: Game.begin(rooms, pose))
        return {"rating": ratings.put(game), **_told(game)}

    @routes.post("/choose")
    async def _choose(choice: Choice) -> dict[str, Any]:
        game = ratings.get(choice.rating)

        def work() -> dict[str, Any]:
            env, engine = game.env, game.env.engine
            assert isinstance(engine, PreferEngine), "others are not begun"
            episodes = engine.episodes
            if episodes.terminated[0]:
                raise ValueError("this object was rated: go on to the next one")
            image, number = env.data.image_ids[episodes.image[0]], int(episodes.object_id[0])
            shown_boxes = episodes.offered_boxes[0]
            comparison = Comparison.of(image, number, episodes.box[0], shown_boxes, choice.choice)
            file.parent.mkdir(parents=True, exist_ok=True)
            append_choice(file, comparison)
            # Where none is better, SAM goes on from the one that it trusts most
            picked = int(episodes.offered_iou[0].argmax()) if choice.choice is None else choice.choice
            env.step(np.array([picked]))
            return {**_told(game), "file": file.name}

        return await queue.run("decode", work)

    @routes.get("/pixels")
    async def _pixels(rating: str) -> Any:
        env = ratings.get(rating).env
        return picture(stretched(env.data.image(int(env.episodes.image[0]))))

    return routes


def _told(game: Game) -> dict[str, Any]:
    whole = shown(game)
    return {name: whole[name] for name in TOLD}
