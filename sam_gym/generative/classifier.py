"""Two small classifiers of 32 x 32 pictures: one gives the reward, the other, unlike it, judges what came of it.

They differ in architecture, in the seed and in the half of the pictures that they learn from, so that what only pleases
the first does not please the second by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sam_gym._utils.progress import progress_bar
from sam_gym.generative.model import ModelError, fill, read_halves, save_halves, to_samples
from sam_gym.generative.sources import SIZE, Pictures

REWARD, JUDGE = ROLES = ("reward", "judge")
"""Who learns from the first half of the pictures and gives rewards; who learns from the second and judges."""

FEATURES = 96
"""Numbers in the layer below the last."""


def _block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(8, out), nn.GELU(),
        nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.GELU(), nn.MaxPool2d(2),
    )  # fmt: skip


class _Residual(nn.Module):
    """A depthwise residual block, after ConvNeXt (Liu et al. 2022, arXiv 2201.03545)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels), nn.GroupNorm(1, channels),
            nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x)


def _trunk(role: str) -> nn.Sequential:
    if role == REWARD:
        return nn.Sequential(_block(3, 16), _block(16, 32), _block(32, FEATURES))
    return nn.Sequential(
        nn.Conv2d(3, 40, 2, 2), _Residual(40), _Residual(40), nn.Conv2d(40, FEATURES, 2, 2), _Residual(FEATURES),
        _Residual(FEATURES), nn.GroupNorm(8, FEATURES), nn.GELU(),
    )  # fmt: skip


class Classifier(nn.Module):
    """Classes of pictures.

    Args:
        classes: Names of the classes.
        role: "reward" or "judge": which of the two architectures.
        dataset: The set of pictures that it is for.
        size: Side of its pictures in px.
    """

    def __init__(self, classes: Sequence[str], role: str, dataset: str = "", size: int = SIZE) -> None:
        super().__init__()
        self.classes, self.role, self.dataset, self.size = tuple(classes), role, dataset, size
        self.trunk = _trunk(role)
        self.head = nn.Linear(FEATURES, len(classes))

    def features(self, x: Tensor) -> Tensor:
        """(N, 96) of samples (N, 3, size, size) in [-1, 1].

        Raises:
            ValueError: Samples of another size.
        """
        if x.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"this classifier is for pictures of {self.size} x {self.size} px in 3 channels, and was given "
                f"{tuple(x.shape[1:])}"
            )
        return self.trunk(x.clamp(-1, 1)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (N, classes) of samples (N, 3, size, size)."""
        return F.log_softmax(self.head(self.features(x)), dim=1)

    def save(self, path: Path) -> str:
        """Write the weights as float16; gives the file's sha256."""
        facts = {"kind": "classifier", "classes": list(self.classes), "role": self.role, "dataset": self.dataset,
                 "size": self.size}  # fmt: skip
        return save_halves(self, path, facts)

    @classmethod
    def load(cls, path: str | Path, classes: Sequence[str] | None = None) -> Classifier:
        """The classifier of a file that `save` wrote, frozen, for pictures of 32 x 32 px.

        Args:
            path: The file.
            classes: What it must tell apart; None takes any.

        Raises:
            ModelError: No such file, another kind of file, another image size or other classes.
        """
        facts, tensors = read_halves(path, "classifier")
        if facts["size"] != SIZE:
            raise ModelError(
                f"{path} is a classifier of {facts['size']} x {facts['size']} px, and samples have {SIZE} x {SIZE}: "
                "train one with python -m sam_gym.generative.train_base"
            )
        if classes is not None and tuple(facts["classes"]) != tuple(classes):
            raise ModelError(f"{path} tells {facts['classes']} apart, not {list(classes)}")
        model = cls(facts["classes"], facts["role"], facts["dataset"], facts["size"])
        fill(model, tensors, path)
        return model


def train_classifier(
    pictures: Pictures,
    role: str,
    *,
    steps: int = 1000,
    batch: int = 64,
    seed: int = 0,
    noise: float = 0.06,
    progress: bool = True,
) -> Classifier:
    """Train one on its half of the pictures, all classes equally often, mirrored, turned, with some noise.

    Args:
        pictures: Of all classes; the role says which half is used.
        role: "reward" or "judge".
        steps: Steps of AdamW.
        batch: Pictures a step.
        seed: The judge's is another one by itself.
        noise: Standard deviation of what is added to pixels, about what the last denoising step adds.
        progress: Show a bar.

    Raises:
        PicturesError: Too few pictures of a class.
    """
    pictures.check()
    which = ROLES.index(role)
    half = pictures.half(which)
    rng = np.random.default_rng([seed, which])
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(int(rng.integers(2**31)))
        model = Classifier(pictures.classes, role, pictures.name)
    images, rows = to_samples(half.images), [np.flatnonzero(half.labels == k) for k in range(len(half.classes))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    with progress_bar(f"{role} classifier", steps, "step", shown=progress) as bar:
        for _ in range(steps):
            labels = rng.integers(len(rows), size=batch)
            chosen = torch.as_tensor(np.array([rng.choice(rows[k]) for k in labels]))
            x = turned(images[chosen], rng)
            x = x + noise * rng.random() * torch.as_tensor(rng.standard_normal(x.shape, np.float32))
            loss = F.nll_loss(model(x), torch.as_tensor(labels), reduction="mean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix_str(f"loss {float(loss.detach()):.3f}", refresh=False)
            bar.update()
    return model.eval().requires_grad_(False)


def turned(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Each of the pictures (N, 3, S, S) mirrored and turned by quarters at random."""
    for axes in ((-1,), (-2,), None):
        other = x.transpose(-1, -2) if axes is None else x.flip(axes)
        chosen = torch.as_tensor(rng.random(len(x)) < 0.5)
        x = torch.where(chosen[:, None, None, None], other, x)
    return x


@torch.no_grad()
def confusion(model: Classifier, pictures: Pictures) -> NDArray[np.int64]:
    """(classes, classes) counts: rows are the true classes, columns what the classifier says."""
    said = model(to_samples(pictures.images)).argmax(1).numpy()
    table = np.zeros((len(pictures.classes),) * 2, np.int64)
    np.add.at(table, (pictures.labels, said), 1)
    return table
