"""Whole held-out splits, full and exact: the box alone, the oracle, and agents with either mask returned.

Shared by the benchmarks of agents that have a judge; each result is kept in a file, and is measured once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_gym._utils.fetching import write_json
from sam_gym.envs.keeping import BEST_PREDICTED, LAST
from sam_gym.evaluation import encode_images, evaluate, evaluate_stored, make_evaluation_env
from sam_gym.evaluation.comparison import paired_difference
from sam_gym.prompters import box_only, oracle_clicks
from sam_gym.registration import TASKS
from sam_gym.sb3 import ModelPrompter, load_model

Curves = dict[str, NDArray[np.float64]]
RETURNED = {LAST: "last mask", BEST_PREDICTED: "best predicted"}
"""What an episode may return -> how tables call it."""


def env_id_of(dataset: str, task: str = "SamPrompt") -> str:
    """The id of a task's environment on a dataset, given the second part of the id."""
    return next(one.env_id(dataset) for one in TASKS if one.name == task)


def scripted(env_id: str, folder: Path) -> Curves:
    """Name -> IoU after each prompt, (objects, T + 1), of the box alone and of the oracle."""
    env = make_evaluation_env(env_id, "test", data="real", precision="exact")
    encode_images(env.backend, [env.data])
    found = {}
    for name, prompter in (("box only", box_only), ("oracle clicks", oracle_clicks)):
        record, _ = evaluate_stored(prompter, name, env, folder / f"{name.replace(' ', '_')}.json")
        found[name] = record.iou
    return found


def trained(env_id: str, model: Path, stored: Path, name: str) -> Curves:
    """What is returned -> IoU after each prompt of an agent that has a judge.

    Both come of one evaluation: which masks are made does not depend on which one is returned.

    Args:
        env_id: Where it acts.
        model: The agent's file.
        stored: Where the result is kept.
        name: What the progress bar says.

    Raises:
        ValueError: What is stored is of another agent.
    """
    env = make_evaluation_env(env_id, "test", data="real", precision="exact", returns=BEST_PREDICTED)
    agent = ModelPrompter(load_model(model, env.single_action_space, device="cpu"))
    if stored.is_file():
        content = json.loads(stored.read_text(encoding="utf-8"))
    else:
        encode_images(env.backend, [env.data])
        content = {**_measured(env, agent, f"{env_id}, {name}"), "identity": agent.identity}
        write_json(stored, content)
    if content["identity"] != agent.identity:
        raise ValueError(f"{stored} is of other weights than {model}: delete it")
    return {returns: np.array(content[returns]) for returns in RETURNED}


def _measured(env: Any, agent: ModelPrompter, name: str) -> dict[str, list[list[float]]]:
    best, episodes = env.engine.best, env.episodes
    made: dict[tuple[int, int], list[float]] = {}
    plain = best.note

    def note(engine: Any, rows: Any, decoded: Any, *, first: bool) -> None:
        for row, iou in zip(rows, decoded.iou, strict=True):
            key = int(episodes.image[row]), int(episodes.object_id[row])
            if first:
                made[key] = []
            made[key].append(float(iou))
        plain(engine, rows, decoded, first=first)

    best.note = note
    record = evaluate(agent, env, name=name)
    best.note = plain
    last = [made[case.image, case.object_id] for case in record.cases]
    steps = record.iou.shape[1]
    return {
        BEST_PREDICTED: record.iou.tolist(),
        LAST: [curve + curve[-1:] * (steps - len(curve)) for curve in last],
    }


def summary(curves: list[NDArray[np.float64]], box: NDArray[np.float64], oracle: NDArray[np.float64]) -> dict[str, Any]:
    """One entry's numbers.

    Args:
        curves: A seed each, (objects, T + 1).
        box: (objects,) IoU of the box alone.
        oracle: (objects,) last IoU of the oracle.
    """
    final = np.stack([curve[:, -1] for curve in curves])
    gain = paired_difference(final, box)
    whole = oracle.mean() - box.mean()
    return {
        "final": float(final.mean()),
        "gain": [gain.mean, gain.low, gain.high],
        "closed": float((final.mean() - box.mean()) / whole),
        "failures": float((final < box - 1e-9).mean()),
        "curve": np.mean(curves, axis=(0, 1)).tolist(),
    }


def interval(three: list[float]) -> str:
    """A mean and its interval, as tables show them."""
    return f"{three[0]:+.3f} ({three[1]:+.3f} to {three[2]:+.3f})"
