"""Small policies: `LightPolicy` over the action grid, for MaskablePPO, and `BoxPolicy` for moves of boxes, for PPO.

`SpatialPolicy` is what `LightPolicy` was before it had to cost less than its environment.

No layer mixes samples of a batch (no BatchNorm, no attention across it), so PPO's ratios are 1 before any update.

Files of saved models name classes by their module. What once stood here must be found here for as long as such files
are about: `SpatialExtractor`, `ReferenceExtractor` and `SideExtractor` are therefore imported, not only used.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from sam_gym.sb3.extractors import (
    LightExtractor,
    LightReferenceExtractor,
    ReferenceExtractor,
    SideExtractor,
    SpatialExtractor,
    orthogonal,
    pool,
    shape_of,
    to_number,
)
from sam_gym.sb3.sketching import SketchExtractor

ACTION_KINDS = ((2, True), (1, True), (1, False))
"""Signs of clicks, and whether there is a stop action, of the spaces that `SpatialPolicy` acts in."""


class ActionHead(nn.Module):
    """Features (N, width, G, G) -> logits: one per cell and sign, and one to stop from the pooled features.

    Args:
        width: Of the features.
        signs: 2, or 1 where a click's label is not the agent's business.
        stops: Whether there is a stop action.
    """

    def __init__(self, width: int, signs: int = 2, stops: bool = True) -> None:
        super().__init__()
        self.click = orthogonal(nn.Conv2d(width, signs, 1), 0.1)  # begin near uniform choice
        self.stop: nn.Sequential | None = None
        if stops:
            self.stop = to_number(2 * width)

    def forward(self, features: Tensor) -> Tensor:
        """Logits in the order of `GridActions` (foreground cells, background cells, stop) or of `LabelledCells`."""
        clicks = self.click(features).flatten(1)
        return clicks if self.stop is None else torch.cat([clicks, self.stop(pool(features))], dim=1)


class ValueHead(nn.Module):
    """Features (N, width, G, G) -> value (N, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = to_number(2 * width)

    def forward(self, features: Tensor) -> Tensor:
        """Value of each sample."""
        return self.net(pool(features))


class SpatialPolicy(MaskableMultiInputActorCriticPolicy):
    """Actor and critic on shared spatial features; about 176 thousand parameters with MobileSAM's embeddings.

    Args:
        observation_space: Of SamPrompt in grid mode, of SamPromptSemantic or of SamReport.
        action_space: Discrete(2 * G * G + 1), or of an environment whose clicks need no label Discrete(G * G + 1) or,
            without stop, Discrete(G * G).
        lr_schedule: Learning rate by remaining progress.
        stop_share: How likely stop is before any training. None: as likely as any other action, which is so seldom that
            PPO from scratch hardly ever tries it.
        **kwargs: As for SB3's policies; `features_extractor_kwargs` sets `channels`, `width` and `masked`.
            Reference observations are taken as well (`ReferenceExtractor`).
    """

    extractors: ClassVar[tuple[type[BaseFeaturesExtractor], type[BaseFeaturesExtractor]]] = (
        SpatialExtractor,
        ReferenceExtractor,
    )
    """Of full observations, and of those by reference."""

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
        grids = range(2, 33) if referring else [shape_of(observation_space, "embedding")[-1]]
        fitting = [kind for kind in kinds if kind[2] in grids and kind[0] * kind[2] ** 2 + kind[1] == choices]
        if not fitting:
            wanted = "2 G G + 1" if referring else 2 * grids[0] ** 2 + 1
            name = type(self).__name__
            raise ValueError(f"{name} acts on the grid: Discrete({wanted}) is needed, got {action_space}")
        self._signs, self._stops, grid = fitting[0]
        if stop_share is not None and not (self._stops and 0 < stop_share < 1):
            raise ValueError(f"stop_share={stop_share} must be above 0 and below 1, and needs a stop action")
        self._stop_bias = 0.0 if stop_share is None else math.log(stop_share / (1 - stop_share) * (choices - 1))
        kwargs = {"features_extractor_class": self.extractors[referring], "net_arch": [], **kwargs}
        if referring:
            kwargs["features_extractor_kwargs"] = {"grid": grid, **(kwargs.get("features_extractor_kwargs") or {})}
        self._anchor: tuple[SpatialPolicy] | None = None
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        policy: Any = self  # SB3 annotates these as an MLP and linear layers
        width = policy.features_extractor.width
        policy.mlp_extractor = _Identity(self.features_dim)
        policy.action_net, policy.value_net = ActionHead(width, self._signs, self._stops), ValueHead(width)
        if policy.action_net.stop is not None:
            nn.init.constant_(policy.action_net.stop[-1].bias, self._stop_bias)
        policy.optimizer = policy.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def stay_near(self, other: SpatialPolicy) -> None:
        """From now on what PPO calls entropy is -KL(this policy || another one), which nobody trains meanwhile.

        So its `ent_coef` draws the policy to the other one and no longer to chance (an anchor; Ouyang et al. 2022).
        The other one is not saved.
        """
        self._anchor = (other,)  # in a tuple, for torch not to take it for a part of this policy

    def evaluate_actions(
        self, obs: Any, actions: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As SB3 has it, but for the entropy after `stay_near`."""
        if self._anchor is None:
            return super().evaluate_actions(obs, actions, action_masks)
        logits, values = self.outputs_and_values(obs)
        with torch.no_grad():
            anchored = self._anchor[0].outputs_and_values(obs)[0]
        if action_masks is not None:
            allowed = torch.as_tensor(action_masks, dtype=torch.bool, device=logits.device).view_as(logits)
            logits, anchored = logits.masked_fill(~allowed, -1e8), anchored.masked_fill(~allowed, -1e8)
        log_probability, known = logits.log_softmax(dim=1), anchored.log_softmax(dim=1)
        divergence = (log_probability.exp() * (log_probability - known)).sum(dim=1)
        taken = log_probability.gather(1, actions.long().view(-1, 1))[:, 0]
        return values[:, None], taken, -divergence

    def outputs_and_values(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Unmasked logits (N, A) and values (N,) of observations as the environment gives them, `maps` uint8."""
        features = self.extract_features(observations)
        return self.action_net(features), self.value_net(features)[:, 0]


class LightPolicy(SpatialPolicy):
    """`SpatialPolicy` for a sixth of its work; about 36 thousand parameters with MobileSAM's embeddings.

    Args:
        observation_space: As for `SpatialPolicy`.
        action_space: As for `SpatialPolicy`.
        lr_schedule: As for `SpatialPolicy`.
        stop_share: As for `SpatialPolicy`.
        judge: Whether there is a part of its own that predicts the IoU of the mask (`sam_gym.sb3.judging` trains it).
        **kwargs: As for `SpatialPolicy`; `features_extractor_kwargs` sets `channels` and `width`.
    """

    extractors: ClassVar[tuple[type[BaseFeaturesExtractor], type[BaseFeaturesExtractor]]] = (
        LightExtractor,
        LightReferenceExtractor,
    )

    def __init__(self, *args: Any, judge: bool = False, **kwargs: Any) -> None:
        self.judges = judge
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        policy: Any = self
        if self.judges:
            policy.judge_extractor = self.make_features_extractor()
            policy.judge_head = ValueHead(policy.judge_extractor.width)
        super()._build(lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "judge": self.judges}

    def judged(self, observations: dict[str, Tensor]) -> Tensor:
        """(N,) logits of the predicted IoU of the masks that are observed; for policies made with judge=True."""
        policy: Any = self
        return policy.judge_head(self.extract_features(observations, policy.judge_extractor))[:, 0]


class SketchPolicy(LightPolicy):
    """`LightPolicy` that sees a sketch of the object, which it learned to draw beforehand (`sam_gym.sb3.sketching`).

    Args:
        observation_space: Of SamPrompt in grid mode, observation="full".
        action_space: As for `SpatialPolicy`.
        lr_schedule: As for `SpatialPolicy`.
        stop_share: As for `SpatialPolicy`.
        judge: As for `LightPolicy`.
        **kwargs: As for `LightPolicy`.
    """

    extractors = (SketchExtractor, SketchExtractor)

    def __init__(self, observation_space: spaces.Dict, *args: Any, **kwargs: Any) -> None:
        if "embedding" not in observation_space.spaces:
            raise ValueError("SketchPolicy draws from what observation='full' shows: make the environment with it")
        super().__init__(observation_space, *args, **kwargs)

    def use_sketcher(self, weights: dict[str, Tensor]) -> None:
        """Draw as a trained sketcher does, whose state this is."""
        policy: Any = self
        for extractor in (policy.features_extractor, policy.judge_extractor if self.judges else None):
            if extractor is not None:
                extractor.sketcher.load_state_dict(weights)


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
