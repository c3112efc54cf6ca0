"""The policy of SamPrefer: one small network looks at each candidate by itself, and the best mark wins.

Candidates are alike, so what is learned of one holds for all, whatever their order. No layer mixes samples of a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from sam_gym.envs.observations import MAP_SIZE, MAPS, STATE
from sam_gym.envs.references import resolve
from sam_gym.envs.shown_prompts import CANDIDATES
from sam_gym.sb3.extractors import LightExtractor, pool, resolved_space, shape_of, to_number


class ChoiceExtractor(BaseFeaturesExtractor):
    """Observations -> features of each candidate, (N, K * 2 * width): means and maxima over the grid.

    Args:
        observation_space: Of SamPrefer, either observation.
        grid: G of the embedding; needed for reference observations only, as is the next.
        embedding_channels: C of the embedding: 256 for every published SAM.
        channels: As for `LightExtractor`.
        width: As for `LightExtractor`.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        grid: int = 16,
        embedding_channels: int = 256,
        channels: int = 32,
        width: int = 24,
    ) -> None:
        super().__init__(observation_space, CANDIDATES * 2 * width)
        self.width, self.grid, self.refers = width, grid, "reference" in observation_space.spaces
        full = resolved_space(observation_space, grid, embedding_channels) if self.refers else observation_space
        maps = spaces.Box(0, 255, (len(MAPS) + 1, MAP_SIZE, MAP_SIZE), np.uint8)
        state = spaces.Box(0.0, 1.0, (len(STATE) + 1,), np.float32)
        if shape_of(full, "maps")[0] != len(MAPS) + CANDIDATES:
            raise ValueError(f"ChoicePolicy picks one of {CANDIDATES} candidates: it needs SamPrefer, got {full}")
        one = spaces.Dict({"maps": maps, "embedding": full["embedding"], "state": state})
        self.each = LightExtractor(one, channels, width)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """See the class."""
        seen = resolve(observations, self.grid) if self.refers else observations
        n, each = len(seen["state"]), self.each

        def one_by_one(values: Tensor, shared: int) -> Tensor:
            """(N * K, shared + 1, ...): what all candidates share, and what is one's own."""
            own = values[:, shared:].unsqueeze(2)
            common = values[:, None, :shared].expand(-1, CANDIDATES, *values[:, :shared].shape[1:])
            return torch.cat([common, own], dim=2).flatten(0, 1)

        embedded = each.embed(seen["embedding"].to(memory_format=torch.channels_last))
        looked = each.look(one_by_one(seen["maps"], len(MAPS)).to(memory_format=torch.channels_last))
        told = each.tell(one_by_one(seen["state"], len(STATE)))
        return pool(each.joined(embedded.repeat_interleave(CANDIDATES, dim=0), looked, told)).view(n, -1)


class ChoicePolicy(MaskableMultiInputActorCriticPolicy):
    """Actor and critic on a `ChoiceExtractor`.

    Args:
        observation_space: Of SamPrefer.
        action_space: Discrete(4).
        lr_schedule: Learning rate by remaining progress.
        **kwargs: As for SB3's policies; `features_extractor_kwargs` sets `channels` and `width`.
    """

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Discrete, lr_schedule: Schedule, **kwargs: Any
    ) -> None:
        if not isinstance(action_space, spaces.Discrete) or action_space.n != CANDIDATES:
            raise ValueError(
                f"ChoicePolicy picks one of {CANDIDATES}: Discrete({CANDIDATES}) is needed, got {action_space}"
            )
        kwargs = {"features_extractor_class": ChoiceExtractor, "net_arch": [], **kwargs}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        policy: Any = self
        width = 2 * policy.features_extractor.width
        policy.action_net, policy.value_net = _Marks(width), _Value(width)
        policy.optimizer = policy.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def outputs_and_values(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and values (N,) of observations as the environment gives them, `maps` uint8."""
        features = self.extract_features(observations)
        return self.action_net(features), self.value_net(features)[:, 0]


class _Marks(nn.Module):
    """(N, K * width) -> (N, K): each candidate's mark, by the same network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = to_number(width)

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features.unflatten(1, (CANDIDATES, -1)))[..., 0]


class _Value(nn.Module):
    """(N, K * width) -> (N, 1), of the candidates' mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = to_number(width)

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features.unflatten(1, (CANDIDATES, -1)).mean(dim=1))
