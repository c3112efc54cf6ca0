"""Training clip-micro: open_clip's CLIP, its loss and its tokenizer on captioned regions.

A step draws a caption of every class and some groups of regions. A group has one region of every class, and open_clip's
`ClipLoss` is taken within each group: no caption of a region's own class is ever a negative of it, which with eleven
classes a plain batch would be full of. The loss of a step is the mean over its groups. The image tower sees a random
half of each view's patches (Li et al. 2023, "Scaling language-image pre-training via masking", arXiv 2212.00794): half
the time, and little harm where the other half will do.

The regions are drawn and rendered once, ahead (`RegionPool`), since that costs more than what the model does with
them; each is mirrored and turned anew when it is used. Everything follows from the seed: the same settings give the
same weights on the same machine with the same number of threads, interrupted or not. `train_clip` is the command.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from open_clip import ClipLoss
from open_clip.transformer import PatchDropout
from torch import Tensor, nn

from sam_gym._utils.fetching import atomic_path, sha256_of
from sam_gym._utils.progress import progress_bar
from sam_gym.data import SegmentationData
from sam_gym.semantics.captions import CLASSES, captions
from sam_gym.semantics.models import ClipModel, untrained_micro
from sam_gym.semantics.regions import RegionSource, nuclei_scenes, section_scene, smear_scene
from sam_gym.semantics.views import region_views

VIEW_SHARES = {"masked": 0.6, "blurred": 0.3, "cropped": 0.1}
"""How often a region is seen in which view. Of "cropped" least: it does not show which part of it is meant."""

DROPPED_PATCHES = 0.5

MAX_LOGIT_SCALE = math.log(100)
"""As in CLIP's own training."""


@dataclass(frozen=True)
class ClipTrainingSettings:
    """How to train.

    Attributes:
        steps: Steps of AdamW.
        groups: Groups of one region per class in a step.
        sections: Generated sections that regions are drawn from.
        smears: Generated smears.
        regions: Regions of each class that are drawn, and used again and again.
        learning_rate: At its highest: up in a line over the first twentieth of the steps, then down in half a cosine.
        weight_decay: Of AdamW, on matrices but not on embeddings, norms and biases.
        seed: Of everything.
    """

    steps: int = 900
    groups: int = 6
    sections: int = 100
    smears: int = 120
    regions: int = 600
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "groups", "sections", "smears", "regions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class RegionPool:
    """Views of many regions of every class.

    Args:
        nuclei: Images with nuclei as instances: the training split of DSB 2018.
        settings: See `ClipTrainingSettings`.
        clip: Whose input the views are for.
        progress: Show a bar.

    Attributes:
        pixels: float16 (classes, regions, 3, S, S), normalised; classes in the order of `CLASSES`.
    """

    def __init__(
        self, nuclei: SegmentationData, settings: ClipTrainingSettings, clip: ClipModel, *, progress: bool = True
    ) -> None:
        seed, scenes = settings.seed, nuclei_scenes(nuclei)
        with progress_bar("scenes", settings.sections + settings.smears, "image", shown=progress) as bar:
            for kind, (make, count) in enumerate(((section_scene, settings.sections), (smear_scene, settings.smears))):
                for number in range(count):
                    scenes.append(make(np.random.default_rng([seed, kind, number])))
                    bar.update()
        source = RegionSource(scenes)
        size, names, odds = clip.image_size, list(VIEW_SHARES), list(VIEW_SHARES.values())
        self.pixels = torch.empty(len(CLASSES), settings.regions, 3, size, size, dtype=torch.float16)
        with progress_bar("regions", len(CLASSES) * settings.regions, "region", shown=progress) as bar:
            for row, text in enumerate(CLASSES):
                for number in range(settings.regions):
                    rng = np.random.default_rng([seed, 2, row, number])
                    region = source.draw(text, rng)
                    view = names[int(rng.choice(len(names), p=odds))]
                    self.pixels[row, number] = region_views([region.image], [region.mask], clip, view)[0]
                    bar.update()


class ClipTrainer:
    """One training of clip-micro, step by step; it can be stored and taken up again.

    Args:
        nuclei: Images with nuclei as instances: the training split of DSB 2018.
        settings: See `ClipTrainingSettings`.
        state: File that `store` writes and from which a new trainer goes on, or None.
        device: Where it runs.
        progress: Show bars while the regions are made.

    Attributes:
        clip: The model that is trained.
        steps_done: Steps so far.

    Raises:
        ValueError: The stored state is of other settings or other data.
    """

    def __init__(
        self,
        nuclei: SegmentationData,
        settings: ClipTrainingSettings,
        state: Path | None = None,
        *,
        device: str = "cpu",
        progress: bool = True,
    ) -> None:
        self.settings, self.state, self.device = settings, state, torch.device(device)
        self._identity = {**asdict(settings), "nuclei": nuclei.hash()}
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(settings.seed)
            self.clip = untrained_micro()
        self.model: Any = self.clip.model.to(self.device)
        self.model.visual.patch_dropout = PatchDropout(DROPPED_PATCHES)  # as open_clip sets it; has no weights
        self._loss = ClipLoss()
        matrices = [p for name, p in self.model.named_parameters() if p.ndim > 1 and "embedding" not in name]
        kept = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in kept]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate, betas=(0.9, 0.98), fused=True,
        )  # fmt: skip
        self._tokens = [self.clip.tokenizer(list(captions(text))).to(self.device) for text in CLASSES]
        self.steps_done = 0
        if state is not None and state.is_file():
            self._resume(torch.load(state, map_location=self.device, weights_only=True))
        self.pool = RegionPool(nuclei, settings, self.clip, progress=progress)

    def run(self, after_step: Callable[[ClipTrainer, float], None]) -> None:
        """Do the steps that are left; `after_step` gets the loss of each."""
        while self.steps_done < self.settings.steps:
            after_step(self, self._step())

    def store(self) -> None:
        """Write everything that going on needs to the state file."""
        if self.state is None:
            raise ValueError("this ClipTrainer was made without a file for its state")
        stored = {"settings": self._identity, "steps": self.steps_done, "model": self.model.state_dict(),
                  "optimizer": self._optimizer.state_dict()}  # fmt: skip
        with atomic_path(self.state) as path:
            torch.save(stored, path)

    def save(self, path: Path) -> str:
        """Write the model as it is, float16, as `clip_micro/weights.safetensors` has to be; gives the file's sha256."""
        halves = {name: tensor.half().contiguous().cpu() for name, tensor in self.model.state_dict().items()}
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(halves, temporary)
        return sha256_of(path)

    def trained(self) -> ClipModel:
        """The model as `save` writes it, rounded to float16, for use on the CPU; this one stays as it is."""
        clip = untrained_micro()
        clip.model.load_state_dict({name: tensor.half() for name, tensor in self.model.state_dict().items()})
        clip.model.eval().requires_grad_(False)
        return clip

    def _resume(self, stored: dict) -> None:
        if stored["settings"] != self._identity:
            raise ValueError(
                f"{self.state} was stored with other settings or data: {stored['settings']}; remove it, or name "
                "another file to write"
            )
        self.model.load_state_dict(stored["model"])
        self._optimizer.load_state_dict(stored["optimizer"])
        self.steps_done = int(stored["steps"])

    # ------------------------------------------------------------------- a step

    def _step(self) -> float:
        settings = self.settings
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(self.steps_done, settings.steps)
        rng = np.random.default_rng([settings.seed, 3, self.steps_done])
        pixels, tokens = self._draw_pixels(rng), self._draw_captions(rng)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(int(rng.integers(2**63)))  # of the patches that are dropped
            features = self.model.encode_image(pixels.flatten(0, 1), normalize=True)
        words, scale = self.model.encode_text(tokens, normalize=True), self.model.logit_scale.exp()
        groups = features.unflatten(0, pixels.shape[:2])
        loss = torch.stack([self._loss(group, words, scale) for group in groups]).mean()
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        self.steps_done += 1
        return float(loss.detach())

    def _draw_pixels(self, rng: np.random.Generator) -> Tensor:
        """Views (groups, classes, 3, S, S), each mirrored and turned at random."""
        settings = self.settings
        shape = (settings.groups, len(CLASSES))
        rows = torch.as_tensor(rng.integers(settings.regions, size=shape))
        pixels = self.pool.pixels[torch.arange(len(CLASSES)), rows].to(self.device).float()
        for mirror in ((-1,), (-2,), None):
            turned = pixels.transpose(-1, -2) if mirror is None else pixels.flip(mirror)
            chosen = torch.as_tensor(rng.random(shape) < 0.5, device=self.device)
            pixels = torch.where(chosen[..., None, None, None], turned, pixels)
        return pixels

    def _draw_captions(self, rng: np.random.Generator) -> Tensor:
        """Tokens of a caption of every class."""
        return torch.stack([tokens[int(rng.integers(len(tokens)))] for tokens in self._tokens])


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
