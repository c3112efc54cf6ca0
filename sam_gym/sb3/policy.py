"""Small policies: `SpatialPolicy` over the action grid, for MaskablePPO, and `BoxPolicy` for moves of boxes, for PPO.

No layer mixes samples of a batch (no BatchNorm, no attention across it), so PPO's ratios are 1 before any update.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.box_refine import OUTWARD, SideMoves
from sam_gym.envs.observations import MAPS
from sam_gym.envs.observations import observation_space as full_observation_space
from sam_gym.envs.references import resolve
from sam_gym.envs.sights import SIGHTS

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


ACTION_KINDS = ((2, True), (1, True), (1, False))
"""Signs of clicks, and whether there is a stop action, of the spaces that `SpatialPolicy` acts in."""

TEXT_PLANES = 8
"""Constant planes that a text becomes."""


class SpatialExtractor(BaseFeaturesExtractor):
    """Observations -> features on the action grid.

    A 1x1 convolution of the embedding, beside two strided convolutions of the maps, then three 3x3 convolutions of
    which the middle one is dilated. The state is added as constant planes, and so is `text` where there is one, after
    a linear layer.

    Args:
        observation_space: Of any environment of the suite: `maps` (K, 64, 64), `embedding` (C, G, G), `state` (S,) and,
            where the target is told in words, `text` (D,).
        channels: Channels of the embedding branch and of the maps branch.
        width: Channels of the trunk and of the features.
        masked: AlignSAM's state (Huang et al., CVPR 2024, equation 4): the embedding times the mask's probability, and
            nothing else; its layers are the trunk's, since no architecture was published.
    """

    def __init__(
        self, observation_space: spaces.Dict, channels: int = 48, width: int = 64, masked: bool = False
    ) -> None:
        maps, embedding, state = (_shape(observation_space, name) for name in ("maps", "embedding", "state"))
        grid = embedding[-1]
        super().__init__(observation_space, features_dim=width * grid * grid)
        self.width, self.grid, self.masked = width, grid, masked
        self.embed = nn.Sequential(_ChannelNorm(), nn.Conv2d(embedding[0], channels, 1), nn.ReLU())
        self.read: nn.Linear | None = None
        seen = channels
        if not masked:
            self.look = nn.Sequential(
                nn.Conv2d(maps[0], 24, 5, stride=2, padding=2), nn.ReLU(),
                nn.Conv2d(24, channels, 3, stride=2, padding=1), nn.ReLU(),
                nn.AdaptiveAvgPool2d(grid),
            )  # fmt: skip
            if "text" in observation_space.spaces:
                self.read = nn.Linear(_shape(observation_space, "text")[0], TEXT_PLANES)
            seen += channels + state[0] + (TEXT_PLANES if self.read is not None else 0)
        self.trunk = nn.Sequential(
            nn.Conv2d(seen, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _orthogonal(module, np.sqrt(2))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(N, width, G, G) features."""
        if self.masked:
            mask = observations["maps"][:, MAPS.index("mask"), None]
            state = self.embed[0](observations["embedding"]) * nn.functional.adaptive_avg_pool2d(mask, self.grid)
            return self.trunk(self.embed[1:](state))
        numbers = [observations["state"]]
        if self.read is not None:
            numbers.append(self.read(observations["text"]))
        planes = torch.cat(numbers, dim=1)[..., None, None].expand(-1, -1, self.grid, self.grid)
        parts = [self.embed(observations["embedding"]), self.look(observations["maps"]), planes]
        return self.trunk(torch.cat(parts, dim=1))


class ReferenceExtractor(SpatialExtractor):
    """`SpatialExtractor` for environments made with `observation="reference"`: it resolves the references first.

    With the same weights it gives the same features as `SpatialExtractor` does of full observations.

    Args:
        observation_space: Of any environment of the suite with `observation="reference"`.
        grid: G of the action grid; `SpatialPolicy` fills it in.
        embedding_channels: C of the embedding: 256 for every published SAM.
        channels: As for `SpatialExtractor`.
        width: As for `SpatialExtractor`.
        masked: As for `SpatialExtractor`.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        grid: int,
        embedding_channels: int = 256,
        channels: int = 48,
        width: int = 64,
        masked: bool = False,
    ) -> None:
        sight = next(sight for sight in SIGHTS if sight.name in observation_space.spaces)
        text = _shape(observation_space, "text")[0] if "text" in observation_space.spaces else 0
        seen = full_observation_space(embedding_channels, grid, len(sight.channels), len(sight.numbers), text)
        super().__init__(seen, channels, width, masked)
        self._observation_space = observation_space

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(N, width, G, G) features."""
        return super().forward(resolve(observations, self.grid))


class ActionHead(nn.Module):
    """Features (N, width, G, G) -> logits: one per cell and sign, and one to stop from the pooled features.

    Args:
        width: Of the features.
        signs: 2, or 1 where a click's label is not the agent's business.
        stops: Whether there is a stop action.
    """

    def __init__(self, width: int, signs: int = 2, stops: bool = True) -> None:
        super().__init__()
        self.click = _orthogonal(nn.Conv2d(width, signs, 1), 0.1)  # begin near uniform choice
        self.stop: nn.Sequential | None = None
        if stops:
            self.stop = nn.Sequential(nn.Linear(2 * width, 64), nn.ReLU(), _orthogonal(nn.Linear(64, 1), 0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits in the order of `GridActions` (foreground cells, background cells, stop) or of `LabelledCells`."""
        clicks = self.click(features).flatten(1)
        return clicks if self.stop is None else torch.cat([clicks, self.stop(_pool(features))], dim=1)


class ValueHead(nn.Module):
    """Features (N, width, G, G) -> value (N, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * width, 64), nn.ReLU(), _orthogonal(nn.Linear(64, 1), 0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Value of each sample."""
        return self.net(_pool(features))


class SpatialPolicy(MaskableMultiInputActorCriticPolicy):
    """Actor and critic on shared spatial features; about 176 thousand parameters with MobileSAM's embeddings.

    Args:
        observation_space: Of SamPrompt in grid mode, or of SamPromptSemantic.
        action_space: Discrete(2 * G * G + 1), or of an environment in which a module labels the clicks
            Discrete(G * G + 1) or, without stop, Discrete(G * G).
        lr_schedule: Learning rate by remaining progress.
        stop_share: How likely stop is before any training. None: as likely as any other action, which is so seldom that
            PPO from scratch hardly ever tries it.
        **kwargs: As for SB3's policies; `features_extractor_kwargs` sets `channels`, `width` and `masked`.
            Reference observations are taken as well (`ReferenceExtractor`).
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        stop_share: float | None = None,
        **kwargs: Any,
    ) -> None:
        choices = int(action_space.n) if isinstance(action_space, spaces.Discrete) else 0
        referring = "reference" in observation_space.spaces
        # By reference the grid follows from the number of actions: of 9 and 289, which are squares and two squares and
        # one, the latter counts.
        kinds = [(signs, stops, math.isqrt(max(0, choices - stops) // signs)) for signs, stops in ACTION_KINDS]
        grids = range(2, 33) if referring else [_shape(observation_space, "embedding")[-1]]
        fitting = [kind for kind in kinds if kind[2] in grids and kind[0] * kind[2] ** 2 + kind[1] == choices]
        if not fitting:
            wanted = "2 G G + 1" if referring else 2 * grids[0] ** 2 + 1
            raise ValueError(f"SpatialPolicy acts on the grid: Discrete({wanted}) is needed, got {action_space}")
        self._signs, self._stops, grid = fitting[0]
        if stop_share is not None and not (self._stops and 0 < stop_share < 1):
            raise ValueError(f"stop_share={stop_share} must be above 0 and below 1, and needs a stop action")
        self._stop_bias = 0.0 if stop_share is None else math.log(stop_share / (1 - stop_share) * (choices - 1))
        extractor = ReferenceExtractor if referring else SpatialExtractor
        kwargs = {"features_extractor_class": extractor, "net_arch": [], **kwargs}
        if referring:
            kwargs["features_extractor_kwargs"] = {"grid": grid, **(kwargs.get("features_extractor_kwargs") or {})}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        policy: Any = self  # SB3 annotates these as an MLP and linear layers
        width = policy.features_extractor.width
        policy.mlp_extractor = _Identity(self.features_dim)
        policy.action_net, policy.value_net = ActionHead(width, self._signs, self._stops), ValueHead(width)
        if policy.action_net.stop is not None:
            nn.init.constant_(policy.action_net.stop[-1].bias, self._stop_bias)
        policy.optimizer = policy.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def outputs_and_values(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Unmasked logits (N, A) and values (N,) of observations as the environment gives them, `maps` uint8."""
        features = self.extract_features(observations)
        return self.action_net(features), self.value_net(features)[:, 0]


class SideExtractor(BaseFeaturesExtractor):
    """Observations -> one vector, that still knows where along each axis something is.

    The spatial features are averaged, and maximised, over rows and over columns; those four profiles along the view
    say where the sides of an object are. The state, in which boxes stand exactly, joins them once more, and with it the
    moves that would turn the box into that of SAM's mask: in the state they are small differences of large numbers, and
    without them some seeds hardly learned to move.

    Args:
        observation_space: Of SamBoxRefine, either observation.
        grid: G of the embedding; needed for reference observations only, as is the next.
        embedding_channels: C of the embedding: 256 for every published SAM.
        features_dim: Length of the vector.
        channels: As for `SpatialExtractor`.
        width: As for `SpatialExtractor`.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        grid: int = 16,
        embedding_channels: int = 256,
        features_dim: int = 128,
        channels: int = 32,
        width: int = 32,
    ) -> None:
        super().__init__(observation_space, features_dim)
        self.spatial = (
            ReferenceExtractor(observation_space, grid, embedding_channels, channels, width)
            if "reference" in observation_space.spaces
            else SpatialExtractor(observation_space, channels, width)
        )
        self.profiles = nn.Sequential(nn.Linear(4 * width * self.spatial.grid, 2 * features_dim), nn.ReLU())
        numbers = _shape(observation_space, "state")[0]
        self.join = nn.Sequential(nn.Linear(2 * features_dim + numbers + 4, features_dim), nn.ReLU())

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(N, features_dim)."""
        seen = self.spatial(observations)
        profiles = [seen.mean(dim=2), seen.mean(dim=3), seen.amax(dim=2), seen.amax(dim=3)]
        along = self.profiles(torch.stack(profiles, dim=1).flatten(1))
        state = observations["state"]
        return self.join(torch.cat([along, state, moves_to_mask(state)], dim=1))


def moves_to_mask(state: Tensor) -> Tensor:
    """The actions of `SideMoves` that would turn the box into the tight box of the mask, not clipped.

    Args:
        state: (N, S) of SamBoxRefine; its last eight entries are the box and the mask's box.

    Returns:
        (N, 4); 0 where the mask is empty.
    """
    box, mask = state[:, -8:-4], state[:, -4:]
    extents = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    moves = (mask - box) * state.new_tensor(OUTWARD) / (SideMoves.reach * extents)
    return torch.where((mask[:, 2:] > mask[:, :2]).all(dim=1, keepdim=True), moves, 0)


class BoxPolicy(MultiInputActorCriticPolicy):
    """Actor and critic for SamBoxRefine with continuous actions, on a `SideExtractor`.

    Args:
        observation_space: Of SamBoxRefine.
        action_space: Box(-1, 1, (4,)).
        lr_schedule: Learning rate by remaining progress.
        **kwargs: As for SB3's policies; `log_std_init` is -2, small moves about what the clone does.
    """

    stop_choices = (0.05, 0.1, 0.15, 0.2, 0.25)
    """Values of `stop_below` that a training may choose from; .25 is a move by a tenth of the extent."""

    stop_below: Tensor
    """Scalar: deterministic moves all within this of 0 are not made, which says stop. Saved with the weights.

    Small errors that the policy sees are mostly its own, and moving by them spoils boxes that were right. How small is
    small depends on how well it has learned, so agents/train_ppo.py chooses it on the validation split.
    """

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Box, lr_schedule: Schedule, **kwargs: Any
    ) -> None:
        if not isinstance(action_space, spaces.Box) or action_space.shape != (4,):
            raise ValueError(f"BoxPolicy moves the four sides of a box: Box(-1, 1, (4,)) is needed, got {action_space}")
        kwargs = {"features_extractor_class": SideExtractor, "net_arch": [], "log_std_init": -2.0, **kwargs}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.register_buffer("stop_below", torch.tensor(max(self.stop_choices)))

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        actions = super()._predict(observation, deterministic)
        if not deterministic:
            return actions
        return actions * (actions.abs() > self.stop_below).any(dim=1, keepdim=True)

    def outputs_and_values(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean moves (N, 4), not clipped, and values (N,) of observations as the environment gives them."""
        features = self.extract_features(observations)
        return self.action_net(features), self.value_net(features)[:, 0]


ALGORITHMS: dict[str, tuple[type[MaskablePPO] | type[PPO], type[SpatialPolicy] | type[BoxPolicy]]] = {
    "SpatialPolicy": (MaskablePPO, SpatialPolicy),
    "BoxPolicy": (PPO, BoxPolicy),
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

    def __init__(self, model: MaskablePPO | PPO | SpatialPolicy | BoxPolicy) -> None:
        self.model = model

    @property
    def identity(self) -> str:
        """First 12 hex digits of a sha256 over the policy's weights; goes into the records of `evaluate`."""
        digest = hashlib.sha256()
        policy = self.model if isinstance(self.model, nn.Module) else self.model.policy
        for name, weights in policy.state_dict().items():
            digest.update(name.encode())
            digest.update(weights.cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def __call__(self, observations: dict[str, NDArray], env: EngineVectorEnv) -> NDArray:
        """See `Prompter`."""
        model: Any = self.model
        discrete = isinstance(env.single_action_space, spaces.Discrete)
        masks = {"action_masks": env.action_masks()} if discrete else {}
        return model.predict(observations, deterministic=True, **masks)[0]


class _ChannelNorm(nn.Module):
    """Each cell's channels to mean 0 and variance 1: SAM's embeddings are small numbers (standard deviation .09)."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


class _Identity(nn.Module):
    """SB3 puts an MLP between features and heads; here the heads read the spatial features themselves."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = dim

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features

    def forward_actor(self, features: Tensor) -> Tensor:
        return features

    def forward_critic(self, features: Tensor) -> Tensor:
        return features


def _orthogonal(layer: Layer, scale: float) -> Layer:
    nn.init.orthogonal_(layer.weight, scale)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _shape(observation_space: spaces.Dict, name: str) -> tuple[int, ...]:
    shape = observation_space[name].shape
    assert shape is not None, f"{name} is an array"
    return shape


def _pool(features: Tensor) -> Tensor:
    return torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
