"""`SavedAgent`: a model file and what it says of itself: which task it was trained for, and how it acts and observes.

So that `sam-gym` needs nothing but the file. It trains nothing and evaluates nothing.
"""

from __future__ import annotations

import copy
import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.save_util import load_from_zip_file

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.box_refine import SamBoxRefineVectorEnv
from sam_gym.envs.observations import MAPS, STATE
from sam_gym.envs.prompt import SamPromptVectorEnv
from sam_gym.envs.sights import Sight
from sam_gym.fetching import atomic_path
from sam_gym.naming import first_line
from sam_gym.sb3.policy import ModelPrompter, load_model

TASKS: dict[str, tuple[type[EngineVectorEnv], tuple[str, ...]]] = {
    "SamPrompt": (SamPromptVectorEnv, ("grid", "point", "box")),
    "SamBoxRefine": (SamBoxRefineVectorEnv, ("continuous", "discrete")),
}
"""Task -> its vector environment, and its action modes."""


@dataclass(frozen=True)
class SavedAgent:
    """A trained model.

    Attributes:
        file: Where it lies.
        model: The model.
        task: Key of `TASKS`; None if its spaces are of none of them.
        settings: Settings that an environment needs for it: action_mode, observation, grid, and max_prompts where the
            file says so; empty without a task. What a file does not say (view_scale) is left to the task's defaults.
    """

    file: Path
    model: MaskablePPO | PPO
    task: str | None
    settings: dict[str, Any]

    @classmethod
    def load(cls, file: Path, device: str = "auto") -> SavedAgent:
        """Load a model. Its file can run code, so it must come from somebody you trust.

        Raises:
            ValueError: The file is no model of PPO (continuous actions) or MaskablePPO (discrete ones).
        """
        try:
            data, _, _ = load_from_zip_file(file, device="cpu")
            assert data is not None, "load_data is on"
            action_space, observation_space = data["action_space"], data["observation_space"]
            model = load_model(file, action_space, device=device)
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} is not a model that PPO or MaskablePPO saved: {first_line(error)}") from error
        task, settings = _task_of(action_space, observation_space)
        return cls(file, model, task, settings)

    @property
    def identity(self) -> str:
        """See `ModelPrompter.identity`."""
        return ModelPrompter(self.model).identity

    def save_for_use(self, file: Path) -> None:
        """Write the model compressed, and without what only further training needs.

        That is the optimizer's state, and the last observations of the training, which hold parts of its images.
        """
        fresh, whole = copy.copy(self.model), io.BytesIO()
        for name in ("_last_obs", "_last_original_obs", "_last_episode_starts", "ep_info_buffer", "ep_success_buffer"):
            setattr(fresh, name, None)
        fresh.policy = copy.deepcopy(self.model.policy)
        optimizer: Any = fresh.policy.optimizer  # whichever class it is, it takes parameters and a rate
        fresh.policy.optimizer = type(optimizer)(fresh.policy.parameters(), lr=optimizer.param_groups[0]["lr"])
        fresh.save(whole)
        with atomic_path(file) as path, zipfile.ZipFile(whole) as source:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
                for name in source.namelist():
                    target.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED)

    @property
    def env_class(self) -> type[EngineVectorEnv]:
        """The vector environment of its task; ValueError if there is none."""
        if self.task is None:
            spaces = f"it acts in {self.model.action_space} and sees {self.model.observation_space}"
            raise ValueError(
                f"{self.file} was trained for no task that begins with a box ({', '.join(TASKS)}): {spaces}"
            )
        return TASKS[self.task][0]

    def check_task(self, task: str) -> None:
        """Raise ValueError if this model is known to act in another task than `task` (the first part of an id)."""
        if self.task is not None and task in TASKS and task != self.task:
            raise ValueError(f"{self.file} was trained for {self.task}, not for {task}")

    def prompter(self, env: EngineVectorEnv) -> ModelPrompter:
        """It as a prompter.

        Raises:
            ValueError: The environment acts or observes otherwise than the model does, as with a SAM of another kind.
        """
        trained = {"actions": self.model.action_space, **_named(self.model.observation_space)}
        here = {"actions": env.single_action_space, **_named(env.single_observation_space)}
        if trained != here:
            names = [name for name in {**trained, **here} if trained.get(name) != here.get(name)]
            differing = "; ".join(
                f"{name} {_short(trained.get(name))}, here {_short(here.get(name))}" for name in names
            )
            raise ValueError(
                f"{self.file} does not fit this environment with checkpoint {env.settings.checkpoint!r}. It was trained"
                f" with {differing}"
            )
        return ModelPrompter(self.model)


def _task_of(action_space: spaces.Space, observation_space: spaces.Space) -> tuple[str | None, dict[str, Any]]:
    """The task whose spaces these are, or None, and the settings that make them."""
    seen = _named(observation_space)
    settings: dict[str, Any] = {"observation": "reference" if "reference" in seen else "full"}
    if "embedding" in seen:
        settings["grid"] = int((seen["embedding"].shape or (0,))[-1])
    elif "clicks" in seen and isinstance(action_space, spaces.Discrete):
        settings["grid"] = math.isqrt(int(action_space.n) // 2)
    if "clicks" in seen:
        settings["max_prompts"] = int((seen["clicks"].shape or (0,))[0])
    for task, (env, modes) in TASKS.items():
        for mode in modes if _shows(env.settings_class.sight, seen) else ():
            wanted = {**settings, "action_mode": mode}
            if env.settings_class.parse(wanted).actions().space == action_space:
                return task, wanted
    return None, {}


def _named(space: spaces.Space) -> dict[str, spaces.Space]:
    """The parts of an observation space by name; one that is no Dict has none that the suite knows."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}


def _shows(sight: Sight, seen: dict[str, spaces.Space]) -> bool:
    if "reference" in seen:
        return sight.name in seen
    if not {"maps", "state"} <= seen.keys():
        return False
    maps, state = (seen[name].shape or (0,) for name in ("maps", "state"))
    return maps[0] == len(MAPS) + len(sight.channels) and state[0] == len(STATE) + len(sight.numbers)


def _short(space: spaces.Space | None) -> str:
    if space is None:
        return "none"
    return str(space) if isinstance(space, spaces.Discrete) else str(space.shape)
