"""N episodes around one backend: the only step function of the suite.

`PromptEngine` holds the episodes as arrays and makes one decode call per step, whatever N is and however many of them
begin anew in that step. The single environment is N = 1 of it; seeding, autoreset and Gymnasium's interfaces are the
environments' business (`sam_gym.envs.base`), and what a task is its `Settings` say.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_gym.boxes import clip_box
from sam_gym.data import SegmentationData, load_data
from sam_gym.envs.episode import Episodes, view_of
from sam_gym.envs.observers import OBSERVERS, Observer, Rows
from sam_gym.envs.rewards import Outcome, Quality, parse_reward, weighted
from sam_gym.envs.settings import RESET_OPTIONS, Settings
from sam_gym.sam.backend import ImageEmbedding, get_backend
from sam_gym.sam.masks import Masks
from sam_gym.sam.prompts import PromptBatch

NO_ROWS: Rows = np.zeros(0, np.intp)


@dataclass(frozen=True)
class Pose:
    """Where one episode begins: image index, object id, cue box (4,) float32."""

    image: int
    object_id: int
    cue: NDArray[np.float32]


class PromptEngine:
    """N prompting episodes, advanced together.

    Args:
        settings: Of one task, for example `sam_gym.envs.prompt.PromptSettings`.
        num_envs: N.
        images: Take these instead of those that the settings name. Without truths (`UnlabelledData`) episodes go on as
            ever; IoU, Dice and rewards are NaN.

    Attributes:
        episodes: The episodes as arrays.
        quality: IoU and Dice of the current masks against their objects, (N,) each.
        box_only_iou: (N,) IoU of the cue box's own mask, where each episode began.
    """

    def __init__(self, settings: Settings, num_envs: int, images: SegmentationData | None = None) -> None:
        self.settings = settings
        self.actions = settings.actions()
        if images is None:
            images = load_data(settings.dataset, settings.split, settings.data, settings.min_area, settings.max_area)
        self.data = images
        self.backend = get_backend(settings.checkpoint, settings.device, settings.precision)
        n = num_envs
        self.episodes = Episodes.blank(n, settings.max_prompts, settings.grid)
        self._observer: Observer = OBSERVERS[settings.observation](
            self.episodes, self.backend, settings.grid, settings.sight
        )
        self.observation_space = self._observer.space
        self.quality = Quality(np.zeros(n), np.zeros(n))
        self.box_only_iou = np.zeros(n)
        self._reward = parse_reward(settings.reward)
        self._logits = torch.zeros(n, *self.backend.mask_size, device=self.backend.device)
        self._embeddings: list[ImageEmbedding | None] = [None] * n
        self._truths: list[Tensor | None] = [None] * n

    # ------------------------------------------------------------------ posing

    def pose(self, rng: np.random.Generator, request: Mapping[str, Any] | None = None) -> Pose:
        """Draw an episode, or take what `request` fixes of it.

        Args:
            rng: The sub-environment's own generator.
            request: May hold "image" (index in the split, or id), "object" (id in that image), "cue" (x0, y0,
                x1, y1 in image pixels) and the task's own options; what is missing is drawn.

        Raises:
            ValueError: An unknown entry, or an image, object or cue that is not there.
        """
        request = dict(request or {})
        if unknown := sorted(request.keys() - set(self.settings.reset_options)):
            *others, last = map(repr, self.settings.reset_options)
            raise ValueError(f"unknown reset options {unknown}; known are {', '.join(others)} and {last}")
        image, wanted, cue = (request.pop(name, None) for name in RESET_OPTIONS)
        objects = self.data.objects
        if wanted is not None:
            if image is None:
                raise ValueError("reset option 'object' needs 'image': object ids count within one image")
            row = self.data.find(_plain(image), int(wanted))
        elif image is not None:
            index = self.data.image_index(_plain(image))
            rows = np.flatnonzero(objects.image_index == index)
            if not len(rows):
                raise ValueError(f"image {self.data.image_ids[index]!r} has no object within the area limits")
            row = int(rng.choice(rows))
        else:
            row = int(rng.integers(len(objects)))
        index = int(objects.image_index[row])
        size = self.data.image(index).shape[:2]
        if cue is None:
            box = self.settings.draw_cue(objects.box[row], (size[0], size[1]), rng, **request)
        elif request:
            raise ValueError(f"reset option 'cue' is the box itself; leave out {sorted(request)}")
        else:
            box = np.asarray(cue, np.float32)
            if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
                raise ValueError(f"reset option 'cue' must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, got {cue!r}")
            if (box[2:] <= 0).any() or (box[:2] >= size[::-1]).any():
                raise ValueError(f"reset option 'cue' lies outside the image of {size[1]} x {size[0]} px: {cue!r}")
            box = clip_box(box, (size[0], size[1]))
        return Pose(index, int(objects.object_id[row]), box)

    # ---------------------------------------------------------------- stepping

    def act(self, rows: Rows, actions: NDArray | Sequence) -> None:
        """Turn actions into prompts. Which episodes end is known from here on (`episodes.terminated`)."""
        self.actions.apply(self.episodes, rows, np.asarray(actions))
        self.episodes.steps[rows] += 1

    def settle(
        self, acted: Rows, fresh: Mapping[int, Pose]
    ) -> tuple[NDArray[np.float64], dict[int, tuple[dict, dict]]]:
        """Decode, in one call, the prompts of the rows that acted and the cue boxes of the episodes that begin.

        Args:
            acted: Rows for which `act` was called.
            fresh: Row -> where its next episode begins. A row may act and begin anew in one step.

        Returns:
            Rewards of `acted`, and for rows that acted and began anew the last observation and info of the old episode.
        """
        prompted = acted[~self.episodes.stopped[acted]]
        begun = self._stage(fresh)
        decoded = self._decode(prompted, begun)
        rewards = self._finish_step(acted, prompted, decoded[: len(prompted)])
        finals = {row: (self.observation(row), self.info(row)) for row in fresh if row in acted}
        self._install(begun, decoded[len(prompted) :])
        return rewards, finals

    def _stage(self, fresh: Mapping[int, Pose]) -> _Begun:
        """New episodes, made ready beside the running ones."""
        episodes = Episodes.blank(len(fresh), self.settings.max_prompts, self.settings.grid)
        for i, pose in enumerate(fresh.values()):
            episodes.image[i], episodes.object_id[i] = pose.image, pose.object_id
            episodes.image_size[i] = self.data.image(pose.image).shape[:2]
            episodes.cue[i] = episodes.box[i] = episodes.last_box[i] = pose.cue
            episodes.view[i] = view_of(pose.cue, self.settings.view_scale)
        embeddings = self.backend.encode([self.data.image(pose.image) for pose in fresh.values()])
        truths: list[Tensor | None] = [None] * len(fresh)
        if self.data.labelled:
            masks = (self.data.mask(pose.image, pose.object_id) for pose in fresh.values())
            truths = [torch.as_tensor(mask, device=self.backend.device) for mask in masks]
        return _Begun(np.fromiter(fresh, np.intp, len(fresh)), episodes, embeddings, truths)

    def _decode(self, prompted: Rows, begun: _Begun) -> _Decoded:
        """The one decode call of a step: the prompts of running episodes, then the cue boxes of new ones."""
        if not len(prompted) and not len(begun.rows):
            none = np.zeros(0)
            return _Decoded(self._logits[:0], none, none, none, np.zeros((0, 4), np.float32))
        running, new = self.episodes, begun.episodes
        has_mask = (np.arange(len(prompted) + len(new)) < len(prompted)) & self.settings.feeds_mask
        masks = None
        if has_mask.any():
            previous = self._logits[torch.as_tensor(prompted, device=self._logits.device)]
            masks = torch.cat([previous, previous.new_zeros(len(new), *previous.shape[1:])])
        batch = PromptBatch(
            points=np.concatenate([running.points[prompted], new.points]),
            labels=np.concatenate([running.labels[prompted], new.labels]),
            boxes=np.concatenate([running.box[prompted], new.box]),
            mask_logits=masks,
            has_mask=has_mask,
        )
        embeddings = [_known(self._embeddings[row]) for row in prompted] + begun.embeddings
        boxes = self.settings.sight.shows_mask_box
        if not self.data.labelled:
            return _Decoded.of(self.backend.decode(embeddings, batch, statistics=boxes))
        truths = [_known(truth) for truth in (*(self._truths[row] for row in prompted), *begun.truths)]
        return _Decoded.of(self.backend.decode(embeddings, batch, truths=truths, statistics=boxes))

    def _finish_step(self, acted: Rows, prompted: Rows, decoded: _Decoded) -> NDArray[np.float64]:
        before = Quality(self.quality.iou[acted].copy(), self.quality.dice[acted].copy())
        hit = np.zeros(len(self.episodes))
        for row in prompted:
            hit[row] = self._hit(row)
        self._update_masks(prompted, decoded, first=False)
        after = Quality(self.quality.iou[acted], self.quality.dice[acted])
        self._observer.count(acted)
        cost = self.settings.prompt_cost * np.isin(acted, prompted)
        return weighted(self._reward, Outcome(before, after, hit[acted])) - cost

    def _install(self, begun: _Begun, decoded: _Decoded) -> None:
        self.episodes.put(begun.rows, begun.episodes)
        for i, row in enumerate(begun.rows):
            self._embeddings[row], self._truths[row] = begun.embeddings[i], begun.truths[i]
            self._observer.begin(row, self.data.image(int(begun.episodes.image[i])), begun.embeddings[i])
        self._update_masks(begun.rows, decoded, first=True)
        self._observer.count(begun.rows)
        self.box_only_iou[begun.rows] = self.quality.iou[begun.rows]

    def _update_masks(self, rows: Rows, decoded: _Decoded, *, first: bool) -> None:
        """Take over new masks; only small maps and scalars come to the host."""
        if not len(rows):
            return
        self._logits[torch.as_tensor(rows, device=self._logits.device)] = decoded.logits
        self.quality.iou[rows], self.quality.dice[rows] = decoded.iou, decoded.dice
        self.episodes.mask_box[rows] = decoded.mask_box
        self._observer.show(rows, decoded.logits, decoded.predicted_iou, first=first)

    def _hit(self, row: int) -> float:
        """+1 or -1: does the newest click's label agree with the truth under it? 0 if the prompt was a box.

        NaN where there is no truth.
        """
        if not self.data.labelled:
            return np.nan
        slot = self.episodes.prompts[row] - 1
        label = self.episodes.labels[row, slot]
        if label < 0:
            return 0.0
        x, y = np.round(self.episodes.points[row, slot]).astype(int)
        return 1.0 if bool(_known(self._truths[row])[y, x]) == bool(label) else -1.0

    # ------------------------------------------------------------------ looking

    def observations(self, rows: Rows | slice = slice(None)) -> dict[str, NDArray]:
        """Fresh copies of the observations of `rows`, stacked."""
        return self._observer.get(rows)

    def observation(self, row: int) -> dict[str, NDArray]:
        """Fresh copy of the observation of one row."""
        return {name: array[0] for name, array in self.observations(np.array([row])).items()}

    def info(self, row: int) -> dict[str, Any]:
        """Quality and identity of one row's episode, as plain Python values."""
        return {
            "iou": float(self.quality.iou[row]),
            "dice": float(self.quality.dice[row]),
            "prompts": int(self.episodes.prompts[row]),
            "image": self.data.image_ids[self.episodes.image[row]],
            "object": int(self.episodes.object_id[row]),
            "source": self.data.source,
        }

    def action_masks(self) -> NDArray[np.bool_]:
        """(N, actions) bool: what may be done. Discrete action modes only."""
        masks = getattr(self.actions, "masks", None)
        if masks is None:
            raise ValueError(f"action masks exist for discrete actions, not for {self.settings.action_mode!r}")
        return masks(self.episodes)

    def mask(self, row: int) -> NDArray[np.bool_]:
        """(H, W) bool, the current mask at full size."""
        return (self.backend.upscale(self._logits[row], _known(self._embeddings[row])) > 0).cpu().numpy()

    def truth(self, row: int) -> NDArray[np.bool_]:
        """(H, W) bool, the object itself. For oracles and pictures; never for agents.

        Raises:
            ValueError: The images have no truths.
        """
        if not self.data.labelled:
            raise ValueError(f"{self.data.name} has no truths: nothing can be measured, and oracles cannot act")
        return _known(self._truths[row]).cpu().numpy()


@dataclass
class _Begun:
    """Episodes about to begin: the rows they will take, their arrays, embeddings and objects."""

    rows: Rows
    episodes: Episodes
    embeddings: list[ImageEmbedding]
    truths: list[Tensor | None]


@dataclass
class _Decoded:
    """What a step needs of a decode: logits (n, 4h, 4w) on the device; on the host three numbers per mask and its box.

    The boxes are (n, 4) float32 in pixels of the image, NaN where the mask is empty or nobody asked.
    """

    logits: Tensor
    predicted_iou: NDArray[np.float64]
    iou: NDArray[np.float64]
    dice: NDArray[np.float64]
    mask_box: NDArray[np.float32]

    @classmethod
    def of(cls, masks: Masks) -> _Decoded:
        """The single masks of a decode, in one copy to the host; without truths IoU and Dice are NaN."""
        measured, estimate = masks.statistics, masks.predicted_iou.double()
        agreement = [torch.full_like(estimate, torch.nan)] * 2
        if measured is not None and measured.intersection is not None:
            agreement = [measured.iou, measured.dice]
        predicted, iou, dice = torch.stack([estimate, *agreement])[..., 0].cpu().numpy()
        boxes = np.full((len(masks.logits), 4), np.nan, np.float32)
        if measured is not None and measured.box is not None:
            some = (measured.area[:, 0] > 0).cpu().numpy()
            boxes[some] = measured.box[:, 0].cpu().numpy()[some]
        return cls(masks.logits[:, 0], predicted, iou, dice, boxes)

    def __getitem__(self, rows: slice) -> _Decoded:
        return _Decoded(
            self.logits[rows], self.predicted_iou[rows], self.iou[rows], self.dice[rows], self.mask_box[rows]
        )


def _known(value: Any) -> Any:
    assert value is not None, "reset() fills every row before anything reads it"
    return value


def _plain(image: Any) -> int | str:
    """NumPy integers and strings as Python's."""
    return int(image) if isinstance(image, numbers.Integral) else str(image)
