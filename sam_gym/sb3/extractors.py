"""Features extractors: observations of the suite -> features, on the action grid or along the view's sides.

`LightExtractor` is what new agents learn with; `SpatialExtractor`, six times the work, is what older files hold and
what AlignSAM's published state is made of. No layer mixes samples of a batch, see `sam_gym.sb3.policy`.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from sam_gym.envs.box_refine import OUTWARD, BoxRefineSettings, SideMoves
from sam_gym.envs.observations import MAPS
from sam_gym.envs.observations import observation_space as full_observation_space
from sam_gym.envs.references import resolve
from sam_gym.envs.shown_prompts import BOX, MASK_BOX, SHOWN_PROMPTS

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

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
        maps, embedding, state = (shape_of(observation_space, name) for name in ("maps", "embedding", "state"))
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
                self.read = nn.Linear(shape_of(observation_space, "text")[0], TEXT_PLANES)
            seen += channels + state[0] + (TEXT_PLANES if self.read is not None else 0)
        self.trunk = nn.Sequential(
            nn.Conv2d(seen, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                orthogonal(module, np.sqrt(2))

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
        super().__init__(resolved_space(observation_space, grid, embedding_channels), channels, width, masked)
        self._observation_space = observation_space

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(N, width, G, G) features."""
        return super().forward(resolve(observations, self.grid))


class LightExtractor(BaseFeaturesExtractor):
    """Observations -> features on the action grid, for 38 MFLOP forward and backward in place of 249.

    Nothing is convolved at full resolution: each patch of 4 x 4 pixels of the maps is read by one linear layer, and
    each cell of the embedding by another. A third joins them, together with one of the state and of `text` where there
    is one; three residual 3x3 convolutions follow, of which the middle one is dilated. These are dense, since few
    channels that mix take less time than many that do not.

    Args:
        observation_space: As for `SpatialExtractor`.
        channels: As for `SpatialExtractor`.
        width: Channels of the trunk and of the features.
    """

    patch: ClassVar[int] = 4
    """Side of a patch in pixels of the maps, which is one cell of the usual grid of 16 x 16."""

    def __init__(self, observation_space: spaces.Dict, channels: int = 32, width: int = 24) -> None:
        maps, embedding, state = (shape_of(observation_space, name) for name in ("maps", "embedding", "state"))
        grid = embedding[-1]
        super().__init__(observation_space, features_dim=width * grid * grid)
        self.width, self.grid = width, grid
        self.embed = nn.Sequential(NormedLinear(embedding[0], channels), nn.ReLU())
        fits = self.patch * grid == maps[-1]  # then pooling would copy, for a tenth of all the time
        self.look = nn.Sequential(
            nn.Conv2d(maps[0], channels, self.patch, stride=self.patch), nn.ReLU(),
            nn.Identity() if fits else nn.AdaptiveAvgPool2d(grid),
        )  # fmt: skip
        self.join = nn.Conv2d(2 * channels, width, 1)
        self.tell = nn.Linear(state[0], width)
        self.read: nn.Linear | None = None
        if "text" in observation_space.spaces:
            self.read = nn.Linear(shape_of(observation_space, "text")[0], width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                orthogonal(module, np.sqrt(2))
        self.trunk = nn.Sequential(*(_Residual(width, dilation) for dilation in (1, 2, 1)))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(N, width, G, G) features."""
        told = self.tell(observations["state"])
        if self.read is not None:
            told = told + self.read(observations["text"])
        parts = ((self.embed, "embedding"), (self.look, "maps"))
        # Channels last: a tenth quicker on CPUs, the copy into this order included
        embedded, looked = (f(observations[name].to(memory_format=torch.channels_last)) for f, name in parts)
        return self.joined(embedded, looked, told)

    def joined(self, embedded: Tensor, looked: Tensor, told: Tensor) -> Tensor:
        """Features of what `embed`, `look` and `tell` make of an observation."""
        return self.trunk((self.join(torch.cat([embedded, looked], dim=1)) + told[..., None, None]).relu())


class LightReferenceExtractor(LightExtractor):
    """`LightExtractor` for environments made with `observation="reference"`, as `ReferenceExtractor` is.

    Args:
        observation_space: Of any environment of the suite with `observation="reference"`.
        grid: G of the action grid; `LightPolicy` fills it in.
        embedding_channels: C of the embedding: 256 for every published SAM.
        channels: As for `SpatialExtractor`.
        width: As for `LightExtractor`.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        grid: int,
        embedding_channels: int = 256,
        channels: int = 32,
        width: int = 24,
    ) -> None:
        super().__init__(resolved_space(observation_space, grid, embedding_channels), channels, width)
        self._observation_space = observation_space

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(N, width, G, G) features."""
        return super().forward(resolve(observations, self.grid))


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
        numbers = shape_of(observation_space, "state")[0]
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
        state: (N, S) of SamBoxRefine; it tells the box, and the tight box of the mask.

    Returns:
        (N, 4); 0 where the mask is empty.
    """
    shown = BoxRefineSettings.shown_prompts
    box, mask = state[:, shown.entries(*BOX)], state[:, shown.entries(*MASK_BOX)]
    extents = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    moves = (mask - box) * state.new_tensor(OUTWARD) / (SideMoves.reach * extents)
    return torch.where((mask[:, 2:] > mask[:, :2]).all(dim=1, keepdim=True), moves, 0)


class _ChannelNorm(nn.Module):
    """Each cell's channels to mean 0 and variance 1: SAM's embeddings are small numbers (standard deviation .09)."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


class NormedLinear(nn.Conv2d):
    """A 1x1 convolution of `_ChannelNorm`'s result, without that result: it would be a copy of all embeddings."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, G, G) of embeddings (N, C, G, G)."""
        with torch.no_grad():  # embeddings are observed, not learned
            variance = x.square().mean(dim=1, keepdim=True) - x.mean(dim=1, keepdim=True).square()
            scale = (variance.clamp(min=0) + 1e-5).rsqrt()
        centred = self.weight - self.weight.mean(dim=1, keepdim=True)  # for the mean of its input
        assert self.bias is not None, "a convolution has one unless told otherwise"
        return nn.functional.conv2d(x, centred) * scale + self.bias[:, None, None]


class _Residual(nn.Module):
    """A 3x3 convolution beside the identity."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.change = orthogonal(nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation), np.sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.change(x)).relu()


def resolved_space(observation_space: spaces.Dict, grid: int, embedding_channels: int) -> spaces.Dict:
    """Space of the full observations that `resolve` makes of observations by reference."""
    shown = next(shown for shown in SHOWN_PROMPTS if shown.name in observation_space.spaces)
    text = shape_of(observation_space, "text")[0] if "text" in observation_space.spaces else 0
    return full_observation_space(embedding_channels, grid, len(shown.channels), len(shown.numbers), text)


def orthogonal(layer: Layer, scale: float) -> Layer:
    """The layer, with orthogonal weights of this scale and no bias."""
    nn.init.orthogonal_(layer.weight, scale)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def shape_of(observation_space: spaces.Dict, name: str) -> tuple[int, ...]:
    """Shape of one of the arrays of a Dict space."""
    shape = observation_space[name].shape
    assert shape is not None, f"{name} is an array"
    return shape


def pool(features: Tensor) -> Tensor:
    """Features (N, C, G, G) -> their means and maxima over the grid, (N, 2 C)."""
    return torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)


def to_number(width: int) -> nn.Sequential:
    """Vectors (..., width) -> one number each, near 0 at the beginning."""
    return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), orthogonal(nn.Linear(64, 1), 0.1))
