"""What a saved agent says of itself: `sam_gym.json`, one more member of the zip file that Stable-Baselines3 writes.

Stable-Baselines3 reads the members that it knows, so that such a file is still a file of its own. An agent's folder
(`sam_gym.sb3.folder`) has a file of this name and form.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import gymnasium
import sb3_contrib
import stable_baselines3
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sam_gym._utils.hub import MEMBER
from sam_gym.envs.base import EngineEnv, EngineVectorEnv
from sam_gym.envs.labelling import POLICY
from sam_gym.envs.settings import Settings
from sam_gym.registration import TASKS
from sam_gym.sam import checkpoint_id
from sam_gym.sb3.models import ModelPrompter
from sam_gym.sb3.vec_env import SamVecEnv
from sam_gym.version import __version__

FORMAT = 1
"""Version of what stands in it."""

LOADED_BY: dict[str, type[MaskablePPO] | type[PPO]] = {"MaskablePPO": MaskablePPO, "PPO": PPO}
"""Name -> the algorithm that loads such a model."""

NEEDED = ("action_mode", "observation", "grid", "max_prompts", "view_scale")
"""Settings of an environment that shape what an agent sees and does."""

BESIDE = "beside"
"""Value of the setting `labeler`: a module labels the clicks, and lies beside the model as NAME.safetensors."""

CLIP_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""Names of published CLIP models, as against files and repositories of anybody's."""


def versions() -> dict[str, str]:
    """Versions of the packages that have a part in a saved model."""
    packages = {"torch": torch, "stable_baselines3": stable_baselines3, "sb3_contrib": sb3_contrib}
    named = {name: str(package.__version__) for name, package in packages.items()}
    return {"sam_gym": __version__, **named, "gymnasium": gymnasium.__version__}


@dataclass(frozen=True)
class Description:
    """What `sam_gym.json` holds.

    Attributes:
        task: First part of the environment's id, as "SamPrompt"; None if the model fits none.
        settings: Settings that an environment needs for the agent: action_mode, observation, grid, max_prompts,
            view_scale, and for SamPromptSemantic and SamReport some more.
        algorithm: Key of `LOADED_BY`.
        policy: Module and name of the policy's class.
        identity: Of the weights, see `ModelPrompter.identity`.
        env_id: The environment that it was trained in, None where unknown, as are the next two.
        dataset: Name of the data set.
        checkpoint: Identity of SAM's weights (`sam_gym.sam.checkpoint_id`).
        versions: Of the packages that wrote the file.
        format: `FORMAT` of that time.
    """

    task: str | None
    settings: dict[str, Any]
    algorithm: str
    policy: str
    identity: str
    env_id: str | None = None
    dataset: str | None = None
    checkpoint: str | None = None
    versions: dict[str, str] = field(default_factory=versions)
    format: int = FORMAT

    @classmethod
    def read(cls, file: Path) -> Description | None:
        """What a file says, or None if it says nothing.

        Raises:
            ValueError: It is written otherwise than this version of sam_gym can read.
            zipfile.BadZipFile: It is no zip file.
        """
        with zipfile.ZipFile(file) as archive:
            if MEMBER not in archive.namelist():
                return None
            text = archive.read(MEMBER)
        return cls.parse(text, file)

    @classmethod
    def parse(cls, text: bytes, file: Path) -> Description:
        """What a `sam_gym.json` says.

        Args:
            text: Its content.
            file: The zip file or folder that it is in, for messages.

        Raises:
            ValueError: As `read`.
        """
        try:
            said = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the {MEMBER} in {file} is not JSON: save the agent again") from error
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            number = said.get("format") if isinstance(said, dict) else None
            versions = said.get("versions") if isinstance(said, dict) else None
            wrote = versions.get("sam_gym") if isinstance(versions, dict) else None
            raise ValueError(
                f"the {MEMBER} in {file} is of format {number}, and sam_gym {__version__} reads format {FORMAT}: "
                f"use the sam_gym that wrote it ({wrote or 'unknown'}), or save the agent again"
            )
        known = {one.name for one in fields(cls)}
        if missing := sorted(known - said.keys()):
            raise ValueError(f"the {MEMBER} in {file} does not say {', '.join(missing)}: save the agent again")
        if str(said["algorithm"]) not in LOADED_BY:
            raise ValueError(
                f"{file} holds a model of {said['algorithm']}, and sam_gym loads those of {' and '.join(LOADED_BY)}"
            )
        return cls(**{name: said[name] for name in known})

    def check_identity(self, found: str, file: Path) -> None:
        """Raise ValueError unless the weights that a file holds are those that it speaks of."""
        if found != self.identity:
            raise ValueError(
                f"{file} holds weights {found}, but its {MEMBER} is of weights {self.identity}: take the file as it "
                "was saved, or save the changed model with sam_gym.sb3.save_agent"
            )

    def write(self, archive: zipfile.ZipFile) -> None:
        """Add it to an open zip file."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        archive.writestr(zipfile.ZipInfo(MEMBER), text, zipfile.ZIP_DEFLATED)


def describe(model: MaskablePPO | PPO, env: Any = None) -> Description:
    """Describe a model and the environment that it acts in.

    Args:
        model: The model.
        env: An environment of this suite, single or vector, or a VecEnv around one; None: the one it is trained in.

    Raises:
        ValueError: The environment is none of this suite, or not one that the model acts in; or the algorithm is
            neither PPO nor MaskablePPO.
    """
    inner = _inner(model.get_env() if env is None else env)
    if not isinstance(inner, EngineEnv | EngineVectorEnv):
        raise ValueError(f"agents are described by an environment of sam_gym, got {env!r}; model.save needs none")
    if isinstance(inner, EngineEnv):
        spaces = inner.action_space, inner.observation_space
    else:
        spaces = inner.single_action_space, inner.single_observation_space
    if (model.action_space, model.observation_space) != spaces:
        raise ValueError(
            f"the model acts in {model.action_space} and this environment takes {spaces[0]}, or it observes "
            "otherwise: describe an agent by the environment that it was trained in"
        )
    settings = inner.settings
    return Description(
        task=_task(type(inner)),
        settings=_needed(settings),
        env_id=None if inner.spec is None else inner.spec.id,
        dataset=settings.dataset,
        checkpoint=checkpoint_id(settings.checkpoint),
        **of_model(model),
    )


def of_model(model: MaskablePPO | PPO) -> dict[str, Any]:
    """What can be said of a model without an environment: algorithm, policy and identity."""
    known = [name for name, algorithm in LOADED_BY.items() if isinstance(model, algorithm)]
    if not known:
        raise ValueError(
            f"sam_gym saves agents of {' and '.join(LOADED_BY)}, not of {type(model).__name__}: use its own save"
        )
    policy = type(model.policy)
    identity = ModelPrompter(model).identity
    return {"algorithm": known[0], "policy": f"{policy.__module__}.{policy.__qualname__}", "identity": identity}


def _inner(env: Any) -> Any:
    """The environment of the suite in VecEnvs, wrappers and vectors of single environments; of the latter the first."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if isinstance(env, SamVecEnv):
        env = env.env
    env = env if isinstance(env, VecEnv) else getattr(env, "unwrapped", env)
    if isinstance(env, DummyVecEnv | gymnasium.vector.SyncVectorEnv):
        env = env.envs[0].unwrapped
    return env


def _task(env_class: type) -> str | None:
    """The task of an environment's class, or of one that it is derived from."""
    classes = {f"{one.__module__}:{one.__qualname__}" for one in env_class.__mro__}
    return next((task.name for task in TASKS if {task.entry_point, task.vector_entry_point} & classes), None)


def _needed(settings: Settings) -> dict[str, Any]:
    needed = {name: getattr(settings, name) for name in NEEDED}
    if settings.whole_class or settings.describes:
        needed["clip"] = settings.clip  # what the text is observed through
    if settings.granularity is not None:
        needed["granularity"] = settings.granularity
    if settings.labeler != POLICY:
        more: Any = settings
        needed |= {"labeler": BESIDE, "stop": more.stop, "repeats": more.repeats}
    return needed
