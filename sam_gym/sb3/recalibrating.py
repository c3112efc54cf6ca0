"""Training of the recalibration module beside PPO: after each step, on the episodes that are running.

As in AlignSAM (Huang et al., CVPR 2024, section 3.3): after each action q updates with Adam on Dice + cross-entropy
against the truth of the training split. One batch is the N running episodes, each with its mask as it is now. A
`Recalibrator` knows nothing of SB3; `RecalibrationCallback` calls it from there, and `Recalibrator.warm_up` without any
agent. What the module is, `sam_gym.semantics.recalibration` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from sam_gym._utils.fetching import atomic_path
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.sb3.teachers import turn
from sam_gym.semantics.recalibration import RecalibrationModule, place_shares, recalibration_loss


@dataclass(frozen=True)
class RecalibratingSettings:
    """Which module, and how it is trained.

    Attributes:
        branch: "implicit" or "explicit".
        context: Whether the module sees the embedding itself beside the states; AlignSAM's does not.
        updates: q, after each step of the environments. As published, 1 for the implicit and 5 for the explicit branch.
        learning_rate: Of Adam; 1e-4 as published.
        turns: Whether each batch is turned or mirrored at random, all of it alike.
        warm_up: Steps of the environments with random clicks before the agent's training.
    """

    branch: str = "implicit"
    context: bool = True
    updates: int = 1
    learning_rate: float = 1e-3
    turns: bool = True
    warm_up: int = 0


class Recalibrator:
    """Trains the module that labels the clicks of an environment.

    Args:
        env: Training environment with a labeler; its module is replaced by a new one.
        settings: See `RecalibratingSettings`.
        seed: Of the first weights, of turns and of random clicks.

    Attributes:
        module: The module.
        updates: Updates so far.
        warmed_up: Steps of the warm-up so far.

    Raises:
        ValueError: The environment has no labeler, or is not of the training split.
    """

    def __init__(self, env: EngineVectorEnv, settings: RecalibratingSettings, seed: int) -> None:
        labeler = env.labeler
        if labeler is None:
            raise ValueError("there is nobody to recalibrate: make the environment with labeler='untrained'")
        if env.settings.split != "train":
            raise ValueError(f"the recalibration module learns from truths: not from the {env.settings.split} split")
        self.env, self.settings, self.seed = env, settings, seed
        self.labeler = labeler
        backend = env.backend
        module = RecalibrationModule(
            settings.branch, backend.embedding_channels, context=settings.context, seed=seed
        ).to(memory_format=torch.channels_last)
        labeler.use(module)
        self.module = labeler.module
        self.updates = self.warmed_up = 0
        self._optimizer = torch.optim.Adam(self.module.parameters(), lr=settings.learning_rate)
        self._truths: dict[tuple[int, int, bytes], tuple[Tensor, Tensor]] = {}

    def update(self) -> float:
        """Q updates on the running episodes; their mean loss.

        Episodes that have only begun count twice where they begin with clicks: as they are, and as they were before
        there was a mask, since that is what first clicks are chosen from.
        """
        embeddings, masks, maps, truths, inside = self._batch()
        fast = self.env.backend.precision == "fast"
        losses = []
        for _ in range(self.settings.updates):
            rng = np.random.default_rng([self.seed, self.updates])
            which = int(rng.integers(8)) if self.settings.turns else 0
            seen = [x if x is None else turn(x, which) for x in (embeddings, masks, maps)]
            with torch.autocast(embeddings.device.type, torch.bfloat16, enabled=fast):
                logits = self.module(*seen)
            loss = recalibration_loss(logits.float(), turn(truths, which), turn(inside, which))
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self._optimizer.step()
            self.updates += 1
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def warm_up(self, after_step: Callable[[Recalibrator, float], None]) -> None:
        """Steps with random clicks that are left, labelled by the module itself; `after_step` gets the loss of each."""
        self.env.reset(seed=self.seed + 1000 * self.warmed_up)
        while self.warmed_up < self.settings.warm_up:
            rng = np.random.default_rng([self.seed, 1, self.warmed_up])
            allowed = self.env.action_masks()
            if (stop := self.env.actions.stop) is not None:
                allowed[:, stop] = ~allowed[:, :stop].any(axis=1)
            self.env.step(np.array([rng.choice(np.flatnonzero(row)) for row in allowed]))
            loss = self.update()
            self.warmed_up += 1
            after_step(self, loss)

    def store(self, path: Path) -> None:
        """Write everything that going on needs."""
        with atomic_path(path) as temporary:
            torch.save(
                {
                    "module": self.module.state_dict(),
                    "optimizer": self._optimizer.state_dict(),
                    "updates": self.updates,
                    "warmed_up": self.warmed_up,
                },
                temporary,
            )

    def resume(self, path: Path) -> None:
        """Go on where `store` wrote it down."""
        stored = torch.load(path, map_location=self.env.backend.device, weights_only=True)
        self.module.load_state_dict(stored["module"])
        self._optimizer.load_state_dict(stored["optimizer"])
        self.updates, self.warmed_up = int(stored["updates"]), int(stored["warmed_up"])

    # ------------------------------------------------------------------ batches

    def _batch(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """Embeddings, masks, similarity maps or None, truths and shares inside the image, of a batch."""
        episodes = self.env.episodes
        rows = np.arange(len(episodes))
        begun = rows[(episodes.prompts == 0) & episodes.decoded]
        embeddings, masks, maps = self.labeler.inputs(rows)
        if len(begun):
            before = self.labeler.inputs(begun, unprompted=True)
            embeddings, masks = torch.cat([embeddings, before[0]]), torch.cat([masks, before[1]])
            maps = None if maps is None or before[2] is None else torch.cat([maps, before[2]])
        truths, inside = zip(*(self._truth(int(row)) for row in (*rows, *begun)), strict=True)
        return embeddings, masks, maps, torch.stack(truths), torch.stack(inside)

    def _truth(self, row: int) -> tuple[Tensor, Tensor]:
        """Share of foreground, and of the image, in each place of a row's view: twice (2g, 2g)."""
        episodes = self.env.episodes
        view: NDArray[np.float32] = episodes.view[row]
        key = int(episodes.image[row]), int(episodes.object_id[row]), view.tobytes()
        if key not in self._truths:
            share, inside = place_shares(self.env.truth(row), view, 2 * self.module.settings.grid)
            device = self.env.backend.device
            self._truths[key] = torch.as_tensor(share, device=device), torch.as_tensor(inside, device=device)
        return self._truths[key]


class RecalibrationCallback(BaseCallback):
    """Calls a `Recalibrator` after each step of PPO's environments, and logs its loss.

    Args:
        recalibrator: Of the same environment.
    """

    def __init__(self, recalibrator: Recalibrator) -> None:
        super().__init__()
        self.recalibrator = recalibrator

    def _on_step(self) -> bool:
        self.logger.record_mean("recalibration/loss", self.recalibrator.update())
        return True
