"""The semantic recalibration module of AlignSAM: which places of a view are foreground, to label clicks there.

A network of its own beside the policy and SAM (Huang et al., CVPR 2024, section 3.3 and equations 11 and 12). It sees
SAM's image embedding E under two attentions, s_c = E * M_c (M_c: similarity of each place to a text) and s_t = E *
M_(t-1) (M_(t-1): probability of the mask before the click), and says the probability of foreground at each place.
Neither similarity maps nor SAM are run here, nor is it said when it is trained (`sam_gym.sb3.recalibrating`).

As published: the two branches and the order of their layers, the two states, Dice + cross-entropy against the truth
reduced to the output's size. Not published, so chosen here:

* Embeddings are normalised over channels at each place before anything is multiplied: SAM's are small numbers
  (standard deviation .09). Afterwards it would undo the multiplication.
* Before the first prompt there is no mask, and s_t would be zeros everywhere; M_0 counts as 1 everywhere then, since
  nothing has been ruled out yet.
* Where the mask is 0 the published state says nothing, so that whatever SAM has missed looks like the background it
  left out. With `context` E itself stands beside the states. Without it the module is as published.
* Grid 32 x 32 (SAM's 64 x 64 in means of four, in the episode's view), 64 channels, 3 x 3 kernels, GroupNorm, GELU;
  self-attention with four heads over means of four places, a sixteenth of the pairs. Forward and backward of 16
  samples took .14 s (implicit) and .24 s (explicit) of one core; without that, or at 64 x 64, several times as much.
* The output has twice the grid's resolution, because four logits for each place cost nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.naming import first_line, unknown
from sam_gym.sam.tuning import dice_loss

BRANCHES = ("implicit", "explicit")

_NOTES = "recalibration"  # key of a file's metadata


@dataclass(frozen=True)
class RecalibrationSettings:
    """What a `RecalibrationModule` is made of.

    Attributes:
        branch: "implicit" (two convolution blocks on s_t, no text) or "explicit" (three convolutions on s_c and s_t,
            self-attention over places, two convolutions that decode the mask).
        embedding_channels: C of SAM's embeddings.
        grid: Places per side of what comes in; twice as many come out.
        width: Channels inside.
        heads: Of the self-attention.
        context: E itself is seen beside the states.
    """

    branch: str = "implicit"
    embedding_channels: int = 256
    grid: int = 32
    width: int = 64
    heads: int = 4
    context: bool = True

    def __post_init__(self) -> None:
        if self.branch not in BRANCHES:
            raise ValueError(unknown("branch of the recalibration module", self.branch, BRANCHES))
        if self.width % GROUPS or self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of {GROUPS} and of heads={self.heads}")


GROUPS = 8
"""Of channels, in GroupNorm; it looks at one sample at a time."""


class RecalibrationModule(nn.Module):
    """Embedding, mask and similarity map -> logits of foreground. No layer mixes samples of a batch.

    Args:
        branch: "implicit" or "explicit"; this and the rest of the settings as in `RecalibrationSettings`.
        seed: Of the first weights.
        **settings: The others of `RecalibrationSettings`.

    Attributes:
        settings: The `RecalibrationSettings`.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is unknown.

    Example:
        >>> module = RecalibrationModule("explicit", embedding_channels=8, grid=4)
        >>> module(torch.randn(3, 8, 4, 4), torch.ones(3, 4, 4), torch.rand(3, 4, 4)).shape
        torch.Size([3, 8, 8])
    """

    def __init__(self, branch: str = "implicit", embedding_channels: int = 256, *, seed: int = 0, **settings: Any):
        super().__init__()
        self.settings = RecalibrationSettings(branch, embedding_channels, **settings)
        width, states = self.settings.width, 1 + (branch == "explicit") + self.settings.context
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            # The first 1 x 1 convolution reads all states at once. A factor for each place commutes with it, so it is
            # done before the multiplication, by slices of its weights, and only one state's channels are ever held.
            self.read = nn.Conv2d(states * embedding_channels, width, 1)
            if branch == "implicit":
                self.body = nn.Sequential(_block(width, width), nn.Conv2d(width, width, 1), _block(width, width))
                self.attention: nn.Module = nn.Identity()
            else:
                self.body = nn.Sequential(_block(width, width), _block(width, width))
                self.attention = _PlaceAttention(width, self.settings.heads)
            decode = [nn.Conv2d(width, width, 3, padding=1), nn.GELU()] if branch == "explicit" else []
            self.head = nn.Sequential(*decode, nn.Conv2d(width, 4, 1), nn.PixelShuffle(2))

    @property
    def needs_similarity(self) -> bool:
        """Whether similarity maps are read."""
        return self.settings.branch == "explicit"

    def forward(self, embedding: Tensor, mask: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Logits of foreground.

        Args:
            embedding: (N, C, g, g) float32, SAM's embedding in the view.
            mask: (N, g, g) float32 in [0, 1], the probability of the mask before the click; ones before the first.
            similarity: (N, g, g) float32 in [0, 1]; needed by the explicit branch, not read by the other.

        Returns:
            (N, 2g, 2g) float32.

        Raises:
            ValueError: The similarity map is missing.
        """
        attentions: list[Tensor | None] = [mask]
        if self.needs_similarity:
            if similarity is None:
                raise ValueError("the explicit branch reads a similarity map; give one, or use branch='implicit'")
            attentions.append(similarity)
        if self.settings.context:
            attentions.append(None)
        places = F.layer_norm(embedding.permute(0, 2, 3, 1), embedding.shape[1:2]).permute(0, 3, 1, 2)
        assert self.read.bias is not None, "nn.Conv2d has one"
        seen = self.read.bias[:, None, None]
        for weight, attention in zip(self.read.weight.chunk(len(attentions), dim=1), attentions, strict=True):
            state = F.conv2d(places, weight)
            seen = seen + (state if attention is None else state * attention[:, None])
        return self.head(self.attention(self.body(F.gelu(seen))))[:, 0]

    def save(self, path: Path | str) -> None:
        """Write weights and settings as safetensors."""
        notes = {_NOTES: json.dumps(vars(self.settings))}
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_path(Path(path)) as temporary:
            safetensors.torch.save_file(weights, temporary, notes)

    @classmethod
    def load(cls, path: Path | str, device: str | torch.device = "cpu") -> RecalibrationModule:
        """The module that `save` wrote.

        Raises:
            ValueError: There is no such file, or it holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"there is no recalibration module {path}; agents/train_ppo.py writes one beside model.zip"
            )
        try:
            with safetensors.safe_open(path, "pt") as file:
                notes: Mapping[str, str] = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {first_line(error)}") from error
        if _NOTES not in notes:
            raise ValueError(f"{path} holds other weights than a recalibration module's")
        try:
            module = cls(**json.loads(notes[_NOTES]))
            module.load_state_dict(weights)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} holds no recalibration module: {first_line(error)}") from error
        return module.to(device)


def recalibration_loss(logits: Tensor, truth: Tensor, inside: Tensor | None = None) -> Tensor:
    """Dice + binary cross-entropy, for each sample alone, then their mean.

    Args:
        logits: (N, h, w) float32.
        truth: (N, h, w) float32 in [0, 1]: share of foreground in each place (`place_shares`).
        inside: (N, h, w) float32 in [0, 1]: share of each place that lies in the image; all of it by default.

    Returns:
        The loss, a scalar.
    """
    inside = torch.ones_like(truth) if inside is None else inside
    entropy = F.binary_cross_entropy_with_logits(logits, truth, inside, reduction="none").sum(dim=(1, 2))
    entropy = entropy / inside.sum(dim=(1, 2)).clamp(min=1)
    return (dice_loss(logits.sigmoid() * inside, truth * inside) + entropy).mean()


def place_shares(mask: NDArray[np.bool_], view: NDArray[np.float32], places: int) -> tuple[NDArray, NDArray]:
    """A mask reduced to the places of a view: means over areas.

    Args:
        mask: (H, W) bool, in pixels of the image.
        view: (3,) left, top, side of the view in pixels of the image; it may leave the image.
        places: Per side of the view.

    Returns:
        (places, places) float32: the share of foreground in that part of each place that lies in the image, 0 where
        none does; and the share of each place that lies in the image.
    """
    (down, inside_y), (across, inside_x) = (
        _overlaps(float(view[1 - axis]), float(view[2]), places, mask.shape[axis]) for axis in (0, 1)
    )
    covered = down @ mask.astype(np.float32) @ across.T
    inside = np.outer(inside_y, inside_x)
    return np.divide(covered, inside, out=np.zeros_like(covered), where=inside > 1e-6), inside


def _overlaps(start: float, side: float, places: int, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of each place that each pixel of one axis covers, (places, length), and that all of them cover."""
    edges = start + np.arange(places + 1)[:, None] / places * side
    pixels = np.arange(length)[None]
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    shares = (overlap.clip(min=0) / (side / places)).astype(np.float32)
    return shares, shares.sum(axis=1)


def _block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(GROUPS, out), nn.GELU())


class _PlaceAttention(nn.Module):
    """Self-attention over the places of each sample, in means of four, added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        coarse = F.avg_pool2d(x, 2)  # a quarter of the places is a sixteenth of the pairs
        places = self.norm(coarse.flatten(2).transpose(1, 2))  # (N, places, width): a sequence for each sample
        attended, _ = self.attend(places, places, places, need_weights=False)
        return x + F.interpolate(attended.transpose(1, 2).unflatten(2, coarse.shape[2:]), x.shape[2:])
