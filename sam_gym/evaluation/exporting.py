"""Episodes of a prompter as a Minari dataset, for offline learning and for cloning elsewhere. Needs the extra `minari`.

Minari keeps its datasets in $MINARI_DATASETS_PATH, else in ~/.minari/datasets. Episodes are those that `evaluate` runs:
one for each object of a split, from a fixed box. What is stored of each step are the observations of the environment,
uncompressed; actions, rewards and ends; and as infos the IoU, and which actions were allowed. Ground truth is in
rewards and infos alone.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from sam_gym._utils.progress import progress_bar
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.evaluation.records import EpisodeCase
from sam_gym.evaluation.run import evaluation_provenance, has_ended, identity_of, select_cases
from sam_gym.prompters import Prompter

if TYPE_CHECKING:
    from minari import MinariDataset
    from minari.data_collector import EpisodeBuffer

OF_VECTORS = ("num_envs", "vectorization_mode", "autoreset_mode", "vector_kwargs")
"""Arguments of a vector environment that one environment does not take."""


def export_episodes(
    prompter: Prompter,
    env: EngineVectorEnv,
    dataset_id: str,
    *,
    name: str | None = None,
    max_objects: int | None = None,
) -> MinariDataset:
    """Let a prompter work on every object of a split, and store all of it as a Minari dataset.

    A dataset of the same name, prompter and episodes that was interrupted is completed.

    Args:
        prompter: Chooses the actions.
        env: Vector environment with autoreset_mode="Disabled", as `make_evaluation_env` makes it.
        dataset_id: Of the dataset, as "cells/oracle-v0".
        name: What to call the prompter; default what `identity_of` says.
        max_objects: So many objects, evenly spread over the split.

    Returns:
        The dataset.

    Raises:
        ValueError: Minari is missing; the dataset is there and is another one; or it is no name of a dataset.
    """
    try:
        import minari
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_dataset import parse_dataset_id
    except ImportError as error:
        raise ValueError(f"episodes are exported by Minari: pip install 'sam_gym[minari]' ({error})") from error
    name = identity_of(prompter) if name is None else name
    cases = select_cases(env, max_objects)
    shown = {"prompter": name, "observation": env.settings.observation}
    provenance = json.dumps({**shown, **evaluation_provenance(prompter, env, cases)})
    parse_dataset_id(dataset_id)  # now, for Minari makes a folder first, and by a wrong name it lists nothing any more
    try:
        dataset = minari.load_dataset(dataset_id)
    except FileNotFoundError:
        dataset = None
    if dataset is not None and dataset.storage.metadata.get("sam_gym") != provenance:
        raise ValueError(
            f"there is a Minari dataset {dataset_id} already, of other episodes: take another name, or "
            f"`minari delete {dataset_id}`"
        )
    done = 0 if dataset is None else int(dataset.total_episodes)
    with progress_bar(name, len(cases), "object", done=done) as bar:
        for first in range(done, len(cases), env.num_envs):
            episodes = list(_episodes(prompter, env, cases[first : first + env.num_envs], EpisodeBuffer))
            if dataset is None:
                dataset = _created(dataset_id, episodes, env, name, provenance)
            else:
                dataset.storage.update_episodes(episodes)
            bar.update(len(episodes))
    return minari.load_dataset(dataset_id)  # one that knows how long it is now


def _created(
    dataset_id: str, episodes: list[EpisodeBuffer], env: EngineVectorEnv, name: str, provenance: str
) -> MinariDataset:
    import minari

    data = env.data
    spec = copy.deepcopy(env.spec)
    if spec is not None:
        spec.kwargs = {name: value for name, value in spec.kwargs.items() if name not in OF_VECTORS}
        spec.max_episode_steps = spec.kwargs.pop("max_episode_steps", None)
    with warnings.catch_warnings():
        # It misses an author, a mail address and a link to the code, which are for whoever publishes the dataset to add
        warnings.filterwarnings("ignore", category=UserWarning, module="minari")
        warnings.filterwarnings("ignore", ".*is out of date", category=DeprecationWarning)
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            env=spec,
            observation_space=env.single_observation_space,
            action_space=env.single_action_space,
            algorithm_name=name,
            description=f"{name} on {data.source}, {data.split} split, with sam_gym: its episodes prompt a frozen SAM.",
            jpeg_encoding=False,
        )
    dataset.storage.update_metadata({"sam_gym": provenance})
    return dataset


def _episodes(
    prompter: Prompter, env: EngineVectorEnv, cases: Sequence[EpisodeCase], buffer: type[EpisodeBuffer]
) -> Iterator[EpisodeBuffer]:
    """An episode for each of as many cases as the environment has rows, or fewer."""
    n, rows = env.num_envs, np.arange(len(cases))
    poses = {row: cases[min(row, len(cases) - 1)].pose() for row in range(n)}  # a prompter looks at every row
    masked = isinstance(env.single_action_space, gymnasium.spaces.Discrete)
    observed: list[list[dict[str, Any]]] = [[] for _ in cases]
    infos: list[dict[str, list[Any]]] = [{} for _ in cases]
    acted: list[list[Any]] = [[] for _ in cases]
    rewarded: list[list[float]] = [[] for _ in cases]

    def note(observations: dict[str, Any], these: Any) -> None:
        allowed = env.action_masks() if masked else None
        for row in these:
            observed[row].append({name: array[row] for name, array in observations.items()})
            infos[row].setdefault("iou", []).append(float(env.quality.iou[row]))
            if allowed is not None:
                infos[row].setdefault("action_masks", []).append(allowed[row])

    observations = env.begin_rows(poses)
    note(observations, rows)
    running = rows
    while len(running):
        actions = np.asarray(prompter(observations, env))
        observations, rewards = env.step_rows(running, actions[running])
        note(observations, running)
        for row, reward in zip(running.tolist(), rewards, strict=True):
            acted[row].append(actions[row])
            rewarded[row].append(float(reward))
        running = running[~has_ended(env)[running]]
    for row, case in enumerate(cases):
        terminated, steps = bool(env.episodes.terminated[row]), len(acted[row])
        yield buffer(
            options={name: list(v) if isinstance(v, tuple) else v for name, v in case.pose().items()},
            observations={name: [one[name] for one in observed[row]] for name in observed[row][0]},
            actions=acted[row],
            rewards=rewarded[row],
            terminations=[False] * (steps - 1) + [terminated],
            truncations=[False] * (steps - 1) + [not terminated],
            infos=infos[row],
        )
