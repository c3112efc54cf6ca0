"""Trained models: which algorithm goes with which policy, how a file is loaded, and a model as a prompter."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import PPO
from torch import nn

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.keeping import Judge
from sam_gym.sb3.choosing import ChoicePolicy
from sam_gym.sb3.policy import BoxPolicy, LightPolicy, SketchPolicy, SpatialPolicy

AnyPolicy = SpatialPolicy | BoxPolicy | ChoicePolicy

ALGORITHMS: dict[str, tuple[type[MaskablePPO] | type[PPO], type[AnyPolicy]]] = {
    "LightPolicy": (MaskablePPO, LightPolicy),
    "SketchPolicy": (MaskablePPO, SketchPolicy),
    "SpatialPolicy": (MaskablePPO, SpatialPolicy),
    "BoxPolicy": (PPO, BoxPolicy),
    "ChoicePolicy": (MaskablePPO, ChoicePolicy),
}
"""Name of a policy -> the algorithm that trains it, and its class."""


def load_model(file: str | Path, action_space: spaces.Space, **kwargs: Any) -> MaskablePPO | PPO:
    """Load a model that was trained for such actions: MaskablePPO for discrete ones, else PPO.

    Args:
        file: model.zip of a run.
        action_space: Of one environment.
        **kwargs: As for the algorithm's own `load`.
    """
    return (MaskablePPO if isinstance(action_space, spaces.Discrete) else PPO).load(file, **kwargs)


class ModelPrompter:
    """A trained model as a `sam_gym.prompters.Prompter`: the most likely allowed action."""

    def __init__(self, model: MaskablePPO | PPO | AnyPolicy) -> None:
        self.model = model

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its file, since models hold what cannot be pickled."""
        if isinstance(self.model, nn.Module):
            return ModelPrompter, (self.model,)
        file = io.BytesIO()
        self.model.save(file)
        return _unpickled, (type(self.model), file.getvalue(), str(self.model.device))

    @property
    def policy(self) -> Any:
        """The network, whether the model is that or an algorithm around it."""
        return self.model if isinstance(self.model, nn.Module) else self.model.policy

    @property
    def identity(self) -> str:
        """First 12 hex digits of a sha256 over the policy's weights; goes into the records of `evaluate`."""
        digest = hashlib.sha256()
        for name, weights in self.policy.state_dict().items():
            digest.update(name.encode())
            digest.update(weights.cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    @property
    def judge(self) -> Judge | None:
        """What predicts the IoU of masks, where the policy has learned to (`sam_gym.envs.keeping`)."""
        policy = self.policy
        if not getattr(policy, "judges", False):
            return None

        def predicted(observations: dict[str, NDArray]) -> NDArray:
            with torch.no_grad():
                seen = {name: torch.as_tensor(array, device=policy.device) for name, array in observations.items()}
                return policy.judged(seen).sigmoid().cpu().numpy()

        return predicted

    def __call__(self, observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
        """See `Prompter`."""
        model: Any = self.model
        masked = isinstance(model, MaskablePPO | MaskableActorCriticPolicy)
        masks = {"action_masks": env.action_masks()} if masked else {}
        return model.predict(observations, deterministic=True, **masks)[0]


def _unpickled(algorithm: type[MaskablePPO] | type[PPO], file: bytes, device: str) -> ModelPrompter:
    return ModelPrompter(algorithm.load(io.BytesIO(file), device=device))
