"""The network that denoises: diffusers' `UNet2DModel`, told the class, in 32 x 32; its file; and images drawn with it.

It sees each image as 16 x 16 patches of 2 x 2 pixels, which about halves the time. It predicts the velocity
v = sqrt(alpha) noise - sqrt(1 - alpha) image (Salimans and Ho 2022, arXiv 2202.00512). Training is in
`sam_gym.generative.training` and `ddpo`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam_gym._utils.fetching import atomic_path, sha256_of
from sam_gym.generative.schedule import Schedule
from sam_gym.generative.sources import SIZE

WIDTHS = (32, 64, 96)
"""Channels at 16 x 16, 8 x 8 and 4 x 4; 1.75 million parameters."""

PATCH = 2


class ModelError(ValueError):
    """A file of weights is not there or not what it must be, or a package is missing."""


def _unet(classes: int) -> nn.Module:
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ModelError(
            'the denoising environments need diffusers: pip install "sam_gym[diffusion]", or in a checkout '
            'pip install -e ".[diffusion]"'
        ) from error
    network: Any = UNet2DModel(
        sample_size=SIZE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=classes,
    )
    return network


class Denoiser(nn.Module):
    """What the noise in a sample is, given the class.

    Args:
        classes: Names of the classes.
        dataset: The set of pictures that it is for.

    Attributes:
        classes, dataset: As given.
        no_class: The label that stands for "any class"; training sometimes gives it, guidance needs it.

    Raises:
        ModelError: diffusers is not installed.
    """

    def __init__(self, classes: Sequence[str], dataset: str = "") -> None:
        super().__init__()
        self.classes, self.dataset, self.no_class = tuple(classes), dataset, len(classes)
        self.unet = _unet(len(classes) + 1).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        """Velocity (N, 3, 32, 32) of samples (N, 3, 32, 32) at trained steps (N,), for labels (N,)."""
        folded = F.pixel_unshuffle(x, PATCH).contiguous(memory_format=torch.channels_last)
        return F.pixel_shuffle(self.unet(folded, timestep, class_labels=label).sample, PATCH)

    def guided(self, x: Tensor, timestep: Tensor, label: Tensor, guidance: float = 1.0) -> Tensor:
        """The velocity with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598); 1 is without.

        With guidance the network sees each sample twice, in one call.
        """
        if guidance == 1:
            return self(x, timestep, label)
        both = self(x.repeat(2, 1, 1, 1), timestep.repeat(2), torch.cat([label, torch.full_like(label, self.no_class)]))
        told, untold = both.chunk(2)
        return untold + guidance * (told - untold)

    def next_mean(self, schedule: Schedule, x: Tensor, left: Tensor, label: Tensor, guidance: float = 1.0) -> Tensor:
        """Mean of the next sample (N, 3, 32, 32) of rows with `left` (N,) steps to go."""
        return schedule.mean(x, self.guided(x, schedule.timesteps[left - 1], label, guidance), left)

    def save(self, path: Path) -> str:
        """Write the weights as float16, with what they are for; gives the file's sha256."""
        return save_halves(self, path, {"kind": "denoiser", "classes": list(self.classes), "dataset": self.dataset})

    @classmethod
    def load(cls, path: str | Path) -> Denoiser:
        """The model of a file that `save` wrote, as float32, frozen, in evaluation mode.

        Raises:
            ModelError: There is no such file, or it holds something else; or diffusers is missing.
        """
        facts, tensors = read_halves(path, "denoiser")
        model = cls(facts["classes"], facts["dataset"])
        fill(model, tensors, path)
        return model


@torch.no_grad()
def sample(
    model: Denoiser, schedule: Schedule, labels: Tensor, generator: torch.Generator, guidance: float = 1.0
) -> Tensor:
    """Draw images.

    Args:
        model: The network.
        schedule: The steps.
        labels: (N,) int64 classes.
        generator: Of all noise; on the CPU, so that seeds mean the same everywhere.
        guidance: Of classifier-free guidance.

    Returns:
        (N, 3, 32, 32) float32, pixels mostly in [-1, 1]: noise of the floor is in them.
    """
    shape = (len(labels), 3, SIZE, SIZE)

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator).to(labels.device)

    x = noise()
    for left in range(schedule.steps, 0, -1):
        rows = torch.full_like(labels, left)
        x = model.next_mean(schedule, x, rows, labels, guidance) + schedule.sigma[left - 1] * noise()
    return x


def save_halves(model: nn.Module, path: Path, facts: dict[str, Any]) -> str:
    """Write a model's tensors as float16, and `facts` as the file's metadata; gives the file's sha256."""
    halves = {name: tensor.detach().half().contiguous().cpu() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(halves, temporary, {"sam_gym": json.dumps(facts)})
    return sha256_of(path)


def read_halves(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a file that `save_halves` wrote.

    Raises:
        ModelError: There is no such file, or it is of another kind.
    """
    if not Path(path).is_file():
        raise ModelError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("sam_gym", "{}"))
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error
    if facts.get("kind") != kind:
        raise ModelError(f"{path} holds {facts.get('kind', 'something that sam_gym did not write')}, not a {kind}")
    return facts, tensors


def fill(model: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Put tensors of a file into a model, and freeze it.

    Raises:
        ModelError: They are of another architecture.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{path} is of another architecture: {str(error).splitlines()[-1].strip()}") from error
    model.eval().requires_grad_(False)


def to_pixels(x: Tensor) -> Any:
    """Samples (N, 3, H, W) in [-1, 1] -> uint8 (N, H, W, 3) NumPy."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def to_samples(images: Any) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
