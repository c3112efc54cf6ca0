"""Tuning a SAM's mask decoder on labelled objects and boxes of the wrong size, the image encoder frozen.

Three methods, the rows of a published comparison of prompt tuning for inaccurate boxes:

* "decoder": the mask decoder alone;
* "embeddings": the mask decoder and SAM's own learned prompt embeddings (corners of boxes, points, "no mask");
* "token": the mask decoder and an added token, a learned prompt beside the box (`sam_gym.sam.added_token`).

As published: the boxes of training (tight with probability .6, wrong in size by 10 % with .2, by 20 % with .2), what is
trained and what is frozen. Not published, so chosen here: the loss is Dice plus binary cross-entropy, which SAM's own
training and most of its fine-tunings are variants of, on low-resolution logits against the truth averaged over
each of their cells; cross-entropy is averaged over twice the box, so that an object counts the same whatever its
size; SAM's estimate of its own IoU is trained along, as SAM did, so that agents can go on reading it. AdamW with a
short warm-up and a cosine to zero, because it needs no tuning of when to stop.

It runs on cached embeddings: an image passes the encoder once. What comes out is a file of `save_decoder`, a checkpoint
like any other. `agents/tune_decoder.py` is the command.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sam_gym._utils.boxes import Floats, missized_box, noisy_box
from sam_gym._utils.fetching import atomic_path
from sam_gym.data import SegmentationData
from sam_gym.sam.added_token import add_token, added_token
from sam_gym.sam.backend import batch_features
from sam_gym.sam.checkpoints import checkpoint_id, load_sam, save_decoder
from sam_gym.sam.decoder import BatchedDecoder
from sam_gym.sam.interface import Backend, ImageEmbedding

METHODS = ("decoder", "embeddings", "token")

SCHEDULE = ((0.0, 0.6), (0.1, 0.2), (0.2, 0.2))
"""Size error of a training box and its probability, as published."""

CUE, CUE_NOISE = "cue", 0.2
"""Boxes with each side moved by up to a fifth of the extent, as those that episodes of SamPrompt begin with."""


@dataclass(frozen=True)
class TuningSettings:
    """How to tune.

    Attributes:
        method: One of `METHODS`.
        steps: Steps of AdamW.
        batch_size: Objects in a step.
        learning_rate: At its highest.
        weight_decay: Of AdamW; none on the added token and SAM's own embeddings.
        warm_up: Share of the steps in which the learning rate rises.
        iou_weight: Weight of the squared error of SAM's estimate of its IoU.
        size_error: Convention, see `sam_gym._utils.boxes.missized_box`; or "cue": boxes are as wrong as SamPrompt's.
        seed: Of the order of objects, of their boxes and of the added token.
    """

    method: str = "token"
    steps: int = 2000
    batch_size: int = 4
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    warm_up: float = 0.05
    iou_weight: float = 0.1
    size_error: str = "isotropic"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"tuning method {self.method!r} is unknown; choose from {', '.join(METHODS)}")
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps={self.steps} and batch_size={self.batch_size} must be at least 1")


class Tuner:
    """One tuning: a model whose decoder learns, step by step; it can be stored and taken up again.

    Args:
        checkpoint: What to start from, as for `load_sam`.
        data: The objects to train on.
        settings: See `TuningSettings`.
        backend: Embeds the images; of the same checkpoint. Its precision says whether the training may compute in
            bfloat16 ("fast"), and its device where.
        state: File that `store` writes and from which a new `Tuner` goes on, or None.

    Attributes:
        sam: The model.
        steps_done: Steps so far.

    Raises:
        ValueError: The stored state is of other settings, another checkpoint or other data.
    """

    def __init__(
        self,
        checkpoint: str,
        data: SegmentationData,
        settings: TuningSettings,
        backend: Backend,
        state: Path | None = None,
    ) -> None:
        self.checkpoint, self.data, self.settings, self.backend, self.state = checkpoint, data, settings, backend, state
        self.sam: Sam = load_sam(checkpoint).to(backend.device)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(settings.seed)
            self._groups = _trainable(self.sam, settings)
        for group in self._groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(self._groups, lr=settings.learning_rate)
        self._decoder = BatchedDecoder(self.sam)
        self.steps_done = 0
        if state is not None and state.is_file():
            self._resume(torch.load(state, map_location=backend.device, weights_only=True))

    def run(self, after_step: Callable[[Tuner, float], None]) -> None:
        """Do the steps that are left; `after_step` gets the loss of each."""
        while self.steps_done < self.settings.steps:
            after_step(self, self._step())

    def store(self) -> None:
        """Write everything that going on needs to the state file."""
        if self.state is None:
            raise ValueError("this Tuner was made without a file for its state")
        with atomic_path(self.state) as path:
            torch.save(
                {
                    "settings": self._identity,
                    "steps": self.steps_done,
                    "weights": [p.detach() for p in self._parameters],
                    "optimizer": self._optimizer.state_dict(),
                },
                path,
            )

    def save(self, path: Path) -> None:
        """Write the tuned decoder, a checkpoint for `load_sam`."""
        save_decoder(self.sam, path, self.checkpoint)

    @property
    def _identity(self) -> dict[str, Any]:
        """What a stored state has to agree with."""
        return {**asdict(self.settings), "checkpoint": checkpoint_id(self.checkpoint), "data": self.data.hash()}

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self._groups for parameter in group["params"]]

    def _resume(self, stored: dict) -> None:
        if stored["settings"] != self._identity:
            raise ValueError(f"{self.state} was stored with other settings: {stored['settings']}")
        with torch.no_grad():
            for parameter, weights in zip(self._parameters, stored["weights"], strict=True):
                parameter.copy_(weights)
        self._optimizer.load_state_dict(stored["optimizer"])
        self.steps_done = int(stored["steps"])

    # ------------------------------------------------------------------- a step

    def _step(self) -> float:
        settings = self.settings
        rate = settings.learning_rate * _rate(self.steps_done, settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss()
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self.steps_done += 1
        return float(loss.detach())

    def _draw(self, data: SegmentationData) -> tuple[NDArray[np.intp], list[Floats]]:
        """Rows of an object table and a box for each: every object once before any comes again."""
        rows = self._turn(len(data.objects))
        rng = np.random.default_rng([self.settings.seed, 1, self.steps_done])
        return rows, [self._box(data, int(row), rng) for row in rows]

    def _box(self, data: SegmentationData, row: int, rng: np.random.Generator) -> Floats:
        """A box of an object, as wrong as the settings say."""
        size = data.image(int(data.objects.image_index[row])).shape[:2]
        if self.settings.size_error == CUE:
            return noisy_box(data.objects.box[row], CUE_NOISE, (size[0], size[1]), rng)
        errors, odds = zip(*SCHEDULE, strict=True)
        error = float(rng.choice(errors, p=odds))
        return missized_box(data.objects.box[row], error, self.settings.size_error, (size[0], size[1]), rng)

    def _turn(self, n: int) -> NDArray[np.intp]:
        """Whose turn it is in this step, of n: each once before any comes again."""
        at = np.arange(self.settings.batch_size) + self.steps_done * self.settings.batch_size
        return np.array([self._order(int(k) // n, n)[int(k) % n] for k in at])

    def _order(self, epoch: int, objects: int) -> NDArray[np.intp]:
        return np.random.default_rng([self.settings.seed, 0, epoch]).permutation(objects)

    def _loss(self) -> Tensor:
        return self._mask_loss(self.data)

    def _mask_loss(self, data: SegmentationData) -> Tensor:
        rows, boxes = self._draw(data)
        objects, device = data.objects, self.backend.device
        embeddings = self._embeddings(data, rows)
        logits, quality = self._decoded(self._decoder, embeddings, boxes)
        losses = []
        for i, (embedding, row) in enumerate(zip(embeddings, rows, strict=True)):
            h, w = self._low_size(embedding)
            truth = torch.as_tensor(
                data.mask(int(objects.image_index[row]), int(objects.object_id[row])), device=device
            )
            losses.append(
                mask_loss(
                    logits[i, 0, :h, :w].float(), quality[i, 0].float(), truth, boxes[i], self.settings.iou_weight
                )
            )
        return torch.stack(losses).mean()

    def _embeddings(self, data: SegmentationData, rows: NDArray[np.intp]) -> list[ImageEmbedding]:
        return self.backend.encode([data.image(int(data.objects.image_index[row])) for row in rows])

    def _low_size(self, embedding: ImageEmbedding) -> tuple[int, int]:
        """Rows and columns of low-resolution logits that lie in the image and not in its padding."""
        low = self.backend.mask_size[0] / self.sam.image_encoder.img_size
        h, w = (math.ceil(length * low) for length in embedding.input_size)
        return h, w

    def _decoded(
        self,
        decoder: BatchedDecoder,
        embeddings: Sequence[ImageEmbedding],
        boxes: Sequence[Floats],
        *,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Low-resolution logits (N, K, 4h, 4w) and predicted IoU (N, K) of one box an embedding."""
        device, n = self.backend.device, len(boxes)
        scales = [np.divide(e.input_size, e.image_size)[[1, 0, 1, 0]] for e in embeddings]  # as `Backend` has them
        scaled = [box * scale for box, scale in zip(boxes, scales, strict=True)]
        features = batch_features([e.features for e in embeddings]).float()  # autocast knows no float16 on a CPU
        with torch.autocast(device.type, torch.bfloat16, enabled=self.backend.precision == "fast"):
            return decoder(
                features,
                torch.zeros(n, 0, 2, device=device),
                torch.zeros(n, 0, dtype=torch.int8, device=device),
                torch.as_tensor(np.stack(scaled), dtype=torch.float32, device=device),
                None,
                torch.zeros(n, dtype=torch.bool, device=device),
                multimask=multimask,
            )


def mask_loss(logits: Tensor, quality: Tensor, truth: Tensor, box: Floats, iou_weight: float) -> Tensor:
    """Dice + cross-entropy around the box + squared error of the estimated IoU.

    Args:
        logits: (h, w) low-resolution logits of the image, padding cut off.
        quality: SAM's estimate of the mask's IoU, a scalar.
        truth: (H, W) bool.
        box: (4,) the prompt, in pixels of the image.
        iou_weight: Weight of the last term.

    Returns:
        The loss, a scalar.
    """
    target = F.interpolate(truth[None, None].float(), logits.shape, mode="area")[0, 0]
    dice = dice_loss(logits.sigmoid(), target)
    (height, width), (h, w) = truth.shape, logits.shape
    x0, y0, x1, y1 = box * (w / width, h / height, w / width, h / height)
    grow_x, grow_y = (x1 - x0) / 2 + 2, (y1 - y0) / 2 + 2
    near = (
        slice(max(0, int(y0 - grow_y)), math.ceil(y1 + grow_y)),
        slice(max(0, int(x0 - grow_x)), math.ceil(x1 + grow_x)),
    )
    entropy = F.binary_cross_entropy_with_logits(logits[near], target[near])
    with torch.no_grad():
        mask, there = logits > 0, target > 0.5
        iou = (mask & there).sum() / (mask | there).sum().clamp(min=1)
    return dice + entropy + iou_weight * (quality - iou) ** 2


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of soft masks (..., h, w), with 1 pixel added above and below, so that an empty truth has a slope."""
    overlap = (probability * target).sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (probability.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1)) + 1)


def _trainable(sam: Sam, settings: TuningSettings) -> list[dict]:
    """Parameter groups of AdamW; for "token" the token is made here."""
    groups = [{"params": list(sam.mask_decoder.parameters()), "weight_decay": settings.weight_decay}]
    if settings.method == "embeddings":
        encoder = sam.prompt_encoder
        learned = (encoder.point_embeddings, encoder.not_a_point_embed, encoder.no_mask_embed)
        groups.append({"params": [p for module in learned for p in module.parameters()], "weight_decay": 0.0})
    if settings.method == "token":
        token = added_token(sam.prompt_encoder) or add_token(sam.prompt_encoder)
        groups.append({"params": list(token.parameters()), "weight_decay": 0.0})
    return groups


def _rate(step: int, settings: TuningSettings) -> float:
    """Factor of the learning rate: up in a line, down in half a cosine."""
    warm = max(1, round(settings.warm_up * settings.steps))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, settings.steps - warm))) / 2
