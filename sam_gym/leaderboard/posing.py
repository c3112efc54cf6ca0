"""The environment that an entry of the board is measured in, and its prompter."""

from __future__ import annotations

import warnings
from typing import Any

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.evaluation import make_evaluation_env
from sam_gym.leaderboard.board import SCRIPTED, Board, Entry, load_agent, task_of
from sam_gym.prompters import Prompter, baselines

NUM_ENVS = 16


def posed(board: Board, entry: Entry, device: str, **more: Any) -> tuple[EngineVectorEnv, Prompter]:
    """The environment that an entry is measured in, and its prompter."""
    settings: dict[str, Any] = {}
    agent = None
    if entry.scripted:
        settings["action_mode"] = SCRIPTED[task_of(entry.env_id)][entry.name]
    else:
        agent = load_agent(board.model_file(entry), device)
        agent.check_task(task_of(entry.env_id))
        settings.update(agent.settings, returns=entry.returns)
    manifest = board.manifest
    num_envs = 1 if "render_mode" in more else min(NUM_ENVS, manifest["max_objects"])
    with warnings.catch_warnings():  # a board keeps to the versions that it was begun with
        warnings.filterwarnings("ignore", "(?s).*is out of date", DeprecationWarning)
        environment = make_evaluation_env(
            entry.env_id, "test", num_envs, data="real", device=device, precision=manifest["precision"],
            checkpoint=manifest["checkpoint"].rpartition("-")[0], **settings, **more,
        )  # fmt: skip
    if agent is not None:
        return environment, agent.prompter(environment)
    return environment, baselines(environment.settings, entry.seed or 0)[entry.name]
