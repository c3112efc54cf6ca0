"""Watch: an episode of an agent or a scripted prompter, step by step, with what a policy thinks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastapi import APIRouter, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.episode import GridActions
from sam_gym.envs.observations import STATE
from sam_gym.prompters import Prompter
from sam_gym.web.model_queue import ModelQueue
from sam_gym.web.playing import Game, shown
from sam_gym.web.rooms import Kept, Rooms, drawn_seed, play_through
from sam_gym.web.wire import mask_of, number, picture, stretched


class Film(BaseModel):
    """Whose episode, in which environment; drawn where no seed is given."""

    env_id: str = Field(max_length=100)
    who: str = Field(max_length=64)
    seed: int | None = Field(None, ge=0, lt=2**31)


def router(rooms: Rooms, queue: ModelQueue) -> APIRouter:
    """The routes."""
    routes, films = APIRouter(prefix="/api/watch"), Kept[NDArray[np.uint8]]()

    @routes.get("/who")
    async def _who(env_id: str) -> list[str]:
        return list(await queue.run("decode", lambda: rooms.prompters(env_id)))

    @routes.post("/film")
    async def _film(film: Film) -> dict[str, Any]:
        def work() -> tuple[dict[str, Any], NDArray[np.uint8]]:
            env, prompter = rooms.seat(film.env_id, film.who)
            seed, steps = drawn_seed() if film.seed is None else film.seed, []
            play_through(env, prompter, seed, lambda seen: steps.append(_step(env, prompter, seen, film, seed)))
            image = env.data.image(int(env.episodes.image[0]))
            return {"seed": seed, "steps": steps, "truth": mask_of(env.truth(0))}, image

        told, image = await queue.run("encode", work)
        return {"film": films.put(image), **told}

    @routes.get("/pixels")
    async def _pixels(film: str) -> Response:
        return picture(stretched(films.get(film)))

    return routes


def _step(env: EngineVectorEnv, prompter: Prompter, seen: dict[str, NDArray], film: Film, seed: int) -> dict[str, Any]:
    """One moment: the episode, SAM's estimate of the IoU, and what the policy thinks, where there is one."""
    sam = float(seen["state"][0, STATE.index("predicted_iou")])
    judge = getattr(prompter, "judge", None)
    thought = _thought(env, prompter, seen)
    return {
        **shown(Game(film.env_id, env, seed)),
        "predicted": number(sam),
        "judged": number(float(judge(seen)[0])) if judge is not None else None,
        **thought,
    }


def _thought(env: EngineVectorEnv, prompter: Prompter, seen: dict[str, NDArray]) -> dict[str, Any]:
    """Probabilities of clicks in each cell, of stop, and the value; nothing for who has no policy on the grid."""
    model: Any = getattr(prompter, "model", None)
    policy = getattr(model, "policy", model)
    nothing = {"positive": None, "negative": None, "stop": None, "value": None}
    if policy is None or not isinstance(env.actions, GridActions) or env.episodes.terminated[0]:
        return nothing
    with torch.no_grad():
        logits, value = policy.outputs_and_values({
            name: torch.as_tensor(array, device=policy.device) for name, array in seen.items()
        })  # fmt: skip
        allowed = torch.as_tensor(env.action_masks(), device=logits.device)
        chances = logits.masked_fill(~allowed, -1e8).softmax(dim=1)[0].cpu().numpy()
    cells = env.actions.cells
    return {
        "positive": [round(float(p), 5) for p in chances[:cells]],
        "negative": [round(float(p), 5) for p in chances[cells : 2 * cells]],
        "stop": number(float(chances[-1])),
        "value": number(float(value[0])),
    }
