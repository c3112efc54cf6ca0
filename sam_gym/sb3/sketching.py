"""A sketch of the object: what an agent believes of the truth, learned before it acts.

A click is one choice among hundreds and says little of the object; its outline says it all. So a small network first
learns to draw the object in the view (`Sketcher`): every pixel of every mask is a lesson. Then it is frozen, and the
policy sees the sketch, and where it contradicts the mask (`SketchExtractor`). Ground truth is looked at while the
sketcher is trained, and by nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.episode import in_view
from sam_gym.envs.observations import MAP_SIZE, MAPS
from sam_gym.sb3.extractors import LightExtractor, NormedLinear, shape_of
from sam_gym.sb3.fitting import Update, fit
from sam_gym.sb3.teachers import turn

FINER = 4
"""A pixel of the truth in the view is the mean of so many samples a side."""


class Sketcher(nn.Module):
    """Observations -> logits of the object in the view, (N, 64, 64): a small U-Net that also reads SAM's embedding.

    Args:
        observation_space: Of an environment whose episodes begin with a box, observation="full".
        width: Channels at the grid of the embedding; half of them at twice its size, a quarter at four times.
        layers: Dilations of the 3x3 convolutions at the grid of the embedding.
    """

    def __init__(self, observation_space: spaces.Dict, width: int = 48, layers: Sequence[int] = (1, 2, 4, 1)) -> None:
        super().__init__()
        maps, embedding = (shape_of(observation_space, name) for name in ("maps", "embedding"))
        half, quarter = width // 2, width // 4
        self.embed = NormedLinear(embedding[0], width)
        self.fine = nn.Conv2d(maps[0], quarter, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(quarter, half, 3, stride=2, padding=1)
        self.join = nn.Conv2d(width + half, width, 1)
        self.trunk = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in layers)
        self.up = nn.Conv2d(width + half, half, 3, padding=1)
        self.draw = nn.Conv2d(half + quarter, quarter + 4, 3, padding=1)
        self.ink = nn.Conv2d(quarter + 4, 4, 1)

    def forward(self, maps: Tensor, embedding: Tensor) -> Tensor:
        """Logits (N, 64, 64) of `maps` (N, K, 64, 64) in [0, 1] and `embedding` (N, C, G, G)."""
        fine = self.fine(maps.contiguous(memory_format=torch.channels_last)).relu()
        coarse = self.coarse(fine).relu()
        known = self.embed(embedding.contiguous(memory_format=torch.channels_last)).relu()
        if known.shape[-1] != coarse.shape[-1]:
            known = F.interpolate(known, coarse.shape[-2:], mode="bilinear", align_corners=False)
        seen = self.join(torch.cat([known, coarse], dim=1)).relu()
        for layer in self.trunk:
            seen = (seen + layer(seen)).relu()
        seen = self.up(torch.cat([seen, coarse], dim=1)).relu()
        seen = F.interpolate(seen, scale_factor=2, mode="nearest")
        seen = self.draw(torch.cat([seen, fine], dim=1)).relu()
        return F.pixel_shuffle(self.ink(seen), 2)[:, 0]


class SketchExtractor(LightExtractor):
    """`LightExtractor` that also sees a frozen sketch of the object, what of it the mask lacks, and what it has beyond.

    Two numbers join the state: the IoU of mask and sketch, both taken as shares, and how sure the sketch is of what it
    draws (the mean of its shares, weighted by themselves).

    Args:
        observation_space: As for `LightExtractor`.
        channels: As for `LightExtractor`.
        width: As for `LightExtractor`.
    """

    def __init__(self, observation_space: spaces.Dict, channels: int = 32, width: int = 24) -> None:
        maps = shape_of(observation_space, "maps")
        more = spaces.Box(0, 255, (maps[0] + 3, *maps[1:]), np.uint8)
        state = spaces.Box(-np.inf, np.inf, (shape_of(observation_space, "state")[0] + 2,), np.float32)
        super().__init__(spaces.Dict({**observation_space.spaces, "maps": more, "state": state}), channels, width)
        self._observation_space = observation_space
        self.sketcher = Sketcher(observation_space).requires_grad_(False)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(N, width, G, G) features."""
        maps = observations["maps"]
        with torch.no_grad():
            sketch = self.sketcher(maps, observations["embedding"]).sigmoid()
            mask = maps[:, MAPS.index("mask")]
            drawn = torch.stack([sketch, sketch * (1 - mask), (1 - sketch) * mask], dim=1)
            ink, lacking, beyond = drawn.sum(dim=(2, 3)).unbind(dim=1)
            iou = (ink - lacking) / (ink + beyond).clamp(min=1)
            sure = (sketch * sketch).sum(dim=(1, 2)) / ink.clamp(min=1)
        state = torch.cat([observations["state"], iou[:, None], sure[:, None]], dim=1)
        return super().forward({**observations, "maps": torch.cat([maps, drawn], dim=1), "state": state})


@dataclass(frozen=True)
class SketchSettings:
    """How a sketcher is trained.

    Attributes:
        total_timesteps: Environment steps in which objects and masks are collected.
        gradient_steps: Adam steps on them.
        batch_size: Masks in an Adam step.
        learning_rate: Of Adam, falling linearly to zero.
        weight_decay: Of Adam.
        clicks: Share of the steps that click somewhere; the others go on to the next object.
    """

    total_timesteps: int = 6400
    gradient_steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 1e-3
    clicks: float = 0.5


def train_sketcher(
    sketcher: Sketcher,
    env: EngineVectorEnv,
    settings: SketchSettings,
    seed: int,
    update: Update = lambda steps, shown: None,
) -> float:
    """Train a sketcher on the objects of an environment.

    Args:
        sketcher: The network.
        env: Training environment, a vector with autoreset_mode="SameStep" and observation="full", clicks on the grid.
        settings: See `SketchSettings`.
        seed: Of clicks and batches.
        update: Told how many steps more have been done, of both kinds, and what is going on.

    Returns:
        Mean IoU of sketch and truth in the view, over the last tenth of the steps.
    """
    rng = np.random.default_rng([seed, 11])
    maps, embeddings, truths, episode = _collect(env, settings, rng, update)
    sketcher.requires_grad_(True).train()
    device = next(sketcher.parameters()).device

    def batch() -> tuple[Tensor, float]:
        picked = torch.as_tensor(rng.integers(len(episode), size=settings.batch_size))
        which, whose = int(rng.integers(8)), episode[picked]
        seen = turn(maps[picked], which).to(device).float() / 255
        truth = turn(truths[whose], which).to(device).float() / FINER**2
        logits = sketcher(seen, turn(embeddings[whose], which).to(device).float())
        loss = F.binary_cross_entropy_with_logits(logits, truth) + _soft_dice(logits.sigmoid(), truth)
        return loss, float(sketch_iou(logits.detach(), truth).mean())

    iou = fit(sketcher.parameters(), settings, batch, update, "drawing")
    sketcher.requires_grad_(False).eval()
    return iou


def sketch_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """(N,) IoU of sketches (N, 64, 64) with truths in the view, both cut at one half."""
    drawn, true = logits > 0, truth >= 0.5
    return (drawn & true).sum(dim=(1, 2)) / (drawn | true).sum(dim=(1, 2)).clamp(min=1)


def truth_in_view(env: EngineVectorEnv, row: int) -> NDArray[np.uint8]:
    """(64, 64) of 0 to 16: how many of 4 x 4 samples of each pixel of the view lie on the object."""
    truth, view = env.truth(row), env.episodes.view[row]
    middle = (np.arange(MAP_SIZE * FINER) + 0.5) / (MAP_SIZE * FINER)
    x, y = np.floor(in_view(view, np.stack([middle, middle], axis=-1))).astype(int).T
    inside = (y[:, None] >= 0) & (y[:, None] < truth.shape[0]) & (x >= 0) & (x < truth.shape[1])
    samples = truth[y.clip(0, truth.shape[0] - 1)[:, None], x.clip(0, truth.shape[1] - 1)] & inside
    return samples.reshape(MAP_SIZE, FINER, MAP_SIZE, FINER).sum(axis=(1, 3)).astype(np.uint8)


def _soft_dice(drawn: Tensor, truth: Tensor) -> Tensor:
    """1 - Dice of shares, so that small objects count as much as large ones (Milletari et al. 2016)."""
    shared = (drawn * truth).sum(dim=(1, 2))
    return (1 - (2 * shared + 1) / (drawn.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)) + 1)).mean()


def _collect(
    env: EngineVectorEnv, settings: SketchSettings, rng: np.random.Generator, update: Update
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maps of all states, embeddings and truths of their episodes, and whose each state is."""
    n = env.num_envs
    observations, _ = env.reset(seed=int(rng.integers(2**31)))
    embeddings = [*observations["embedding"].astype(np.float16)]
    truths = [truth_in_view(env, row) for row in range(n)]
    maps, owners, episode = [], [], np.arange(n)
    for _ in range(-(-settings.total_timesteps // n)):
        maps.append(observations["maps"])
        owners.append(episode.copy())
        allowed = env.action_masks()
        actions = np.full(n, allowed.shape[1] - 1)
        for row in np.flatnonzero(rng.random(n) < settings.clicks):
            actions[row] = rng.choice(np.flatnonzero(allowed[row]))
        observations, _, terminated, truncated, _ = env.step(actions)
        for row in np.flatnonzero(terminated | truncated):
            episode[row] = len(embeddings)
            embeddings.append(observations["embedding"][row].astype(np.float16))
            truths.append(truth_in_view(env, int(row)))
        update(n, "looking at objects")
    arrays = np.concatenate(maps), np.stack(embeddings), np.stack(truths), np.concatenate(owners)
    seen, known, true, whose = (torch.as_tensor(array) for array in arrays)
    return seen, known, true, whose
