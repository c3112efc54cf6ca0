"""`SavedAgent`: an agent on disk and what it says of itself: which task it was trained for, how it acts and observes.

So that `sam-gym` needs nothing but a file, or a folder (`sam_gym.sb3.folder`). `save_agent` writes such files. Files
without `sam_gym.json`, which Stable-Baselines3 wrote alone, are known by their spaces. Nothing is trained or evaluated
here.
"""

from __future__ import annotations

import copy
import io
import math
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.save_util import load_from_zip_file

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.hub import LABELER
from sam_gym._utils.naming import first_line
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.box_refine import SamBoxRefineVectorEnv
from sam_gym.envs.observations import MAPS, STATE
from sam_gym.envs.prefer import SamPreferVectorEnv
from sam_gym.envs.prompt import SamPromptVectorEnv
from sam_gym.envs.proofread import SamProofreadVectorEnv
from sam_gym.envs.shown_prompts import ShownPrompts
from sam_gym.sb3.description import BESIDE, LOADED_BY, Description, describe, of_model
from sam_gym.sb3.folder import read_folder, write_folder
from sam_gym.sb3.models import AnyPolicy, ModelPrompter, load_model

TASKS: dict[str, tuple[type[EngineVectorEnv], tuple[str, ...]]] = {
    "SamPrompt": (SamPromptVectorEnv, ("grid", "point", "box")),
    "SamProofread": (SamProofreadVectorEnv, ("grid", "point", "box")),
    "SamBoxRefine": (SamBoxRefineVectorEnv, ("continuous", "discrete")),
    "SamPrefer": (SamPreferVectorEnv, ("choice",)),
}
"""Task that begins with a box -> its vector environment, and its action modes."""


def save_agent(model: MaskablePPO | PPO, file: str | Path, env: Any = None) -> None:
    """Save a model together with what it needs of an environment, so that `sam-gym` can use the file alone.

    It stays a file that the algorithm's own `load` reads.

    Args:
        model: The model.
        file: Where to; replaced if it is there.
        env: As for `describe`: the environment that it was trained in, by default the model's own.

    Raises:
        ValueError: As `describe`.
    """
    description = describe(model, env)
    with atomic_path(Path(file)) as path:
        with open(path, "wb") as target:
            model.save(target)
        with zipfile.ZipFile(path, "a") as archive:
            description.write(archive)


@dataclass(frozen=True)
class SavedAgent:
    """A trained model.

    Attributes:
        file: Where it lies: a zip file, or a folder.
        model: The model; of a folder the policy alone, which acts but cannot be trained further.
        task: First part of the ids of the environments it acts in; None if nobody knows.
        settings: Settings that an environment needs for it: action_mode, observation, grid, max_prompts, view_scale. An
            old file does not say all of them, which is then left to the task's defaults; empty without a task.
        description: What the file says of itself; None for an old one.
    """

    file: Path
    model: MaskablePPO | PPO | AnyPolicy
    task: str | None
    settings: dict[str, Any]
    description: Description | None = None

    @classmethod
    def load(cls, file: Path, device: str = "auto") -> SavedAgent:
        """Load an agent. A zip file can run code, so it must come from somebody you trust; a folder cannot.

        Raises:
            ValueError: The file is no model of PPO or MaskablePPO, or the folder no agent; or what it says of itself is
                not so.
        """
        if file.is_dir():
            policy, stated = read_folder(file, device)
            return cls(file, policy, stated.task, _with_labeler(stated.settings, file / LABELER), stated)
        try:
            said = Description.read(file)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{file} is not a model that PPO or MaskablePPO saved: {first_line(error)}") from error
        try:
            if said is not None:
                model = LOADED_BY[said.algorithm].load(file, device=device)
            else:
                data, _, _ = load_from_zip_file(file, device="cpu")
                assert data is not None, "load_data is on"
                action_space, observation_space = data["action_space"], data["observation_space"]
                model = load_model(file, action_space, device=device)
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} is not a model that PPO or MaskablePPO saved: {first_line(error)}") from error
        if said is None:
            return cls(file, model, *_task_of(action_space, observation_space))
        said.check_identity(ModelPrompter(model).identity, file)
        return cls(file, model, said.task, _with_labeler(said.settings, file.with_suffix(".safetensors")), said)

    @property
    def policy(self) -> Any:
        """Its network."""
        return ModelPrompter(self.model).policy

    @property
    def identity(self) -> str:
        """See `ModelPrompter.identity`."""
        return ModelPrompter(self.model).identity

    @property
    def judges(self) -> bool:
        """Whether it has a judge of masks, see `ModelPrompter.judge`."""
        return ModelPrompter(self.model).judge is not None

    @property
    def described(self) -> Description:
        """What it says of itself; where it said nothing, what its spaces tell."""
        if not isinstance(self.model, MaskablePPO | PPO):
            assert self.description is not None, "a folder says what it is"
            return self.description
        present = of_model(self.model)
        said = self.description
        return Description(self.task, self.settings, **present) if said is None else replace(said, **present)

    def save_folder(self, folder: Path) -> None:
        """Write it as a folder, see `sam_gym.sb3.folder.write_folder`."""
        labeler = self.settings.get("labeler")
        write_folder(
            folder, ModelPrompter(self.model).policy, self.described, None if labeler is None else Path(labeler)
        )

    def save_for_use(self, file: Path) -> None:
        """Write the model compressed, and without what only further training needs.

        That is the optimizer's state, and the last observations of the training, which hold parts of its images. An
        agent that came as a folder has nothing of that, and is written as a folder, without the ending .zip.
        """
        model = self.model
        if not isinstance(model, MaskablePPO | PPO):
            self.save_folder(file.with_suffix(""))
            return
        description = self.described
        fresh, whole = copy.copy(model), io.BytesIO()
        for name in ("_last_obs", "_last_original_obs", "_last_episode_starts", "ep_info_buffer", "ep_success_buffer"):
            setattr(fresh, name, None)
        fresh.policy = copy.deepcopy(model.policy)
        optimizer: Any = fresh.policy.optimizer  # whichever class it is, it takes parameters and a rate
        fresh.policy.optimizer = type(optimizer)(fresh.policy.parameters(), lr=optimizer.param_groups[0]["lr"])
        fresh.save(whole)
        with atomic_path(file) as path, zipfile.ZipFile(whole) as source:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
                for name in source.namelist():
                    target.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED)
                description.write(target)

    @property
    def env_class(self) -> type[EngineVectorEnv]:
        """The vector environment of its task; ValueError if that is none that begins with a box."""
        if self.task not in TASKS:
            seen = f"it acts in {self.model.action_space} and sees {self.model.observation_space}"
            raise ValueError(
                f"{self.file} was trained for no task that begins with a box ({', '.join(TASKS)}): "
                + (seen if self.task is None else f"it says that it was for {self.task}")
            )
        return TASKS[self.task][0]

    def check_task(self, task: str) -> None:
        """Raise ValueError if this model is known to act in another task than `task` (the first part of an id)."""
        known = self.task is not None and (self.description is not None or task in TASKS)
        if known and task != self.task:
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
            said = self.description
            by = "" if said is None or said.checkpoint is None else f"; its checkpoint was {said.checkpoint}"
            raise ValueError(
                f"{self.file} does not fit this environment with checkpoint {env.settings.checkpoint!r}. It was trained"
                f" with {differing}{by}"
            )
        return ModelPrompter(self.model)


def _with_labeler(settings: dict[str, Any], file: Path) -> dict[str, Any]:
    """Settings in which the module that labels the clicks is the file beside the model."""
    return {**settings, "labeler": str(file)} if settings.get("labeler") == BESIDE else dict(settings)


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
        for mode in modes if _shows(env.settings_class.shown_prompts, seen) else ():
            wanted = {**settings, "action_mode": mode}
            if env.settings_class.parse(wanted).actions().space == action_space:
                return task, wanted
    return None, {}


def _named(space: spaces.Space) -> dict[str, spaces.Space]:
    """The parts of an observation space by name; one that is no Dict has none that the suite knows."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}


def _shows(shown: ShownPrompts, seen: dict[str, spaces.Space]) -> bool:
    if "reference" in seen:
        return shown.name in seen
    if not {"maps", "state"} <= seen.keys():
        return False
    maps, state = (seen[name].shape or (0,) for name in ("maps", "state"))
    return maps[0] == len(MAPS) + len(shown.channels) and state[0] == len(STATE) + len(shown.numbers)


def _short(space: spaces.Space | None) -> str:
    if space is None:
        return "none"
    return str(space) if isinstance(space, spaces.Discrete) else str(space.shape)
