"""N episodes around one backend: the only step function of the suite.

`PromptEngine` holds the episodes as arrays and makes one decode call per step, whatever N is and however many of them
begin anew in that step. The single environment is N = 1 of it; seeding, autoreset and Gymnasium's interfaces are the
environments' business (`sam_gym.envs.base`), and what a task is its `Settings` say.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_gym._utils.boxes import clip_box
from sam_gym.data import DATASETS, SegmentationData, load_data, load_whole_class
from sam_gym.data.copies import with_copies
from sam_gym.envs.agreement import Agreement, Scene, embed_text
from sam_gym.envs.attention import ATTENTIONS
from sam_gym.envs.decoded import Decoded
from sam_gym.envs.episode import Episodes, view_of
from sam_gym.envs.keeping import BEST_PREDICTED, BestMasks
from sam_gym.envs.labelling import LABELER, TRUTH, Labeler, LabelledCells, LabelScene, clicks_of_truth
from sam_gym.envs.observers import OBSERVERS, Observer, Rows
from sam_gym.envs.rewards import Outcome, Quality, hit_reward, parse_reward, weighted
from sam_gym.envs.settings import RESET_OPTIONS, Settings
from sam_gym.sam.backend import ImageEmbedding, get_backend
from sam_gym.sam.prompts import PromptBatch

NO_ROWS: Rows = np.zeros(0, np.intp)

NO_CLICKS = np.zeros((0, 3), np.float32)


@dataclass(frozen=True)
class Pose:
    """Where one episode begins: image index, object id, cue box (4,), clicks that are given (k, 3) x, y, label.

    Without clicks, None, an episode begins as its settings say.
    """

    image: int
    object_id: int
    cue: NDArray[np.float32]
    clicks: NDArray[np.float32] | None


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
        first_iou: (N,) IoU of the mask that each episode began with, 0 where there was none.
        best: The best masks so far, where those are returned; else None.
        text: What the target is, in words.
        attention: What the decoder looks at.
        labeler: The recalibration module beside the episodes, where it labels the clicks; else None.
        text_embedding: (D,) float32, for tasks that show it to agents; else None.
    """

    def __init__(self, settings: Settings, num_envs: int, images: SegmentationData | None = None) -> None:
        self.settings = settings
        self.actions = settings.actions()
        if images is None:
            which = settings.dataset, settings.split, settings.data, settings.min_area, settings.max_area
            images = settings.choose(
                load_whole_class(*which) if settings.whole_class else load_data(*which, settings.root, settings.shares)
            )
            images = with_copies(images, settings.copies) if settings.copies else images
        self.data = images
        spec = DATASETS.get(settings.dataset)
        self.text = spec.text if spec else ""  # nobody says what the objects of a folder are
        self.text_embedding = embed_text(self.text, settings) if settings.whole_class else None
        self.backend = get_backend(settings.checkpoint, settings.device, settings.precision)
        n = num_envs
        self.episodes = Episodes.blank(n, settings.max_prompts, settings.grid, settings.given_clicks)
        self._observer: Observer = OBSERVERS[settings.observation](
            self.episodes, self.backend, settings.grid, settings.shown_prompts, self.text_embedding
        )
        self.observation_space = self._observer.space
        self.labeler: Labeler | None = None
        if isinstance(self.actions, LabelledCells):
            channels, device = self.backend.embedding_channels, self.backend.device
            self.labeler = Labeler(settings, channels, device, self.episodes, self._observer, self.text)
            self.actions.labeler = self.labeler
        self.quality = Quality(np.zeros(n), np.zeros(n))
        self.first_iou = np.zeros(n)
        self._reward = parse_reward(settings.reward)
        self._agreement = Agreement(self.text, settings) if "clip" in self._reward else None
        self._agreed = np.zeros(n)
        self.attention = ATTENTIONS[settings.attention](self.backend)
        self._seen: list[Any] = [None] * n  # what `attention` knows of each episode
        self._logits: list[Tensor | None] = [None] * n
        self._truths: list[Tensor | None] = [None] * n
        self._scenes: list[Scene | None] = [None] * n
        self.best = BestMasks(n) if settings.returns == BEST_PREDICTED else None

    # ------------------------------------------------------------------ posing

    def pose(self, rng: np.random.Generator, request: Mapping[str, Any] | None = None) -> Pose:
        """Draw an episode, or take what `request` fixes of it.

        Args:
            rng: The sub-environment's own generator.
            request: May hold "image" (index in the split, or id), "object" (id in that image), "cue" (x0, y0,
                x1, y1 in image pixels), "points" ((x, y, label), ...) and the task's own options, as far as
                `Settings.reset_options` has them; what is missing is drawn, points excepted.

        Raises:
            ValueError: An unknown entry, or an image, object or cue that is not there.
        """
        request = dict(request or {})
        if unknown := sorted(request.keys() - set(self.settings.reset_options)):
            *others, last = map(repr, self.settings.reset_options)
            raise ValueError(f"unknown reset options {unknown}; known are {', '.join(others)} and {last}")
        image, wanted, cue, points = (request.pop(name, None) for name in (*RESET_OPTIONS, "points"))
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
        clicks = None if points is None else _checked_clicks(points, size, self.settings.given_clicks)
        if clicks is None and self.settings.first_clicks == TRUTH:
            clicks = clicks_of_truth(self.data.mask(index, int(objects.object_id[row])), rng)
        return Pose(index, int(objects.object_id[row]), box, clicks)

    # ---------------------------------------------------------------- stepping

    def begin(self, poses: Mapping[int, Pose]) -> None:
        """Begin the episodes of some rows; what the others hold is left alone."""
        self._decode_all(NO_ROWS, poses)

    def step(
        self, rows: Rows, actions: NDArray | Sequence, fresh: Callable[[], Mapping[int, Pose]]
    ) -> tuple[NDArray[np.float64], dict[int, tuple[dict, dict]]]:
        """One action in each of some rows, and whatever episodes begin beside them: one decode call.

        Args:
            rows: Those that act.
            actions: One for each of them.
            fresh: Asked once it is known which episodes end (`episodes.terminated`): row -> where its next episode
                begins. A row may act and begin anew in one step.

        Returns:
            Rewards of `rows`, and for rows that acted and began anew the last observation and info of the old episode.
        """
        self.actions.apply(self.episodes, rows, np.asarray(actions))
        self.episodes.steps[rows] += 1
        return self._decode_all(rows, fresh())

    def _decode_all(
        self, acted: Rows, fresh: Mapping[int, Pose]
    ) -> tuple[NDArray[np.float64], dict[int, tuple[dict, dict]]]:
        """Decode, in one call, the prompts of the rows that acted and the cue boxes of the episodes that begin."""
        prompted = acted[~self.episodes.stopped[acted]]
        begun = self._stage(fresh)
        decoded = self._decode(prompted, begun)
        rewards = self._finish_step(acted, prompted, decoded[: len(prompted)])
        finals = {row: (self.observation(row), self.info(row)) for row in fresh if row in acted}
        self._install(begun, decoded[len(prompted) :])
        return rewards, finals

    def _stage(self, fresh: Mapping[int, Pose]) -> _Begun:
        """New episodes, made ready beside the running ones."""
        settings = self.settings
        episodes = Episodes.blank(len(fresh), settings.max_prompts, settings.grid, settings.given_clicks)
        for i, pose in enumerate(fresh.values()):
            episodes.image[i], episodes.object_id[i] = pose.image, pose.object_id
            episodes.image_size[i] = self.data.image(pose.image).shape[:2]
            episodes.cue[i] = pose.cue
            episodes.box[i] = episodes.last_box[i] = pose.cue if settings.has_cue else np.nan
            episodes.view[i] = view_of(pose.cue, settings.view_scale)
        embeddings = self.backend.encode([self.data.image(pose.image) for pose in fresh.values()])
        truths: list[Tensor | None] = [None] * len(fresh)
        if self.data.labelled:
            masks = (self.data.mask(pose.image, pose.object_id) for pose in fresh.values())
            truths = [torch.as_tensor(mask, device=self.backend.device) for mask in masks]
        label_scenes: list[LabelScene | None] = [None] * len(fresh)
        for i, pose in enumerate(fresh.values()):
            image, clicks = self.data.image(pose.image), pose.clicks
            if self.labeler is not None:
                label_scenes[i] = scene = self.labeler.scene(image, episodes.view[i], embeddings[i])
                if clicks is None and settings.first_clicks == LABELER:
                    clicks = self.labeler.first_clicks(scene, (image.shape[0], image.shape[1]))
            episodes.give(i, NO_CLICKS if clicks is None else clicks)
            episodes.decoded[i] |= settings.has_cue
        seen = [self.attention.look(*one) for one in zip(embeddings, episodes.view, strict=True)]
        scenes = [
            self._agreement.scene(self.data.image(pose.image), view, embedding, self.attention.frame(one))
            if self._agreement
            else None
            for pose, view, embedding, one in zip(fresh.values(), episodes.view, embeddings, seen, strict=True)
        ]
        rows = np.fromiter(fresh, np.intp, len(fresh))
        return _Begun(rows, episodes, embeddings, seen, truths, scenes, label_scenes)

    def _decode(self, prompted: Rows, begun: _Begun) -> Decoded:
        """The one decode call of a step: the prompts of running episodes, then what new ones begin with.

        A new episode that begins with nothing has an empty mask that nobody decoded or measured.
        """
        running, new, look = self.episodes, begun.episodes, self.attention
        asked = np.concatenate([np.ones(len(prompted), np.bool_), new.decoded])

        def those(held: list, staged: list) -> list:
            return list(compress([held[row] for row in prompted] + staged, asked))

        nothing = [look.nothing(seen) for seen, decoded in zip(begun.seen, new.decoded, strict=True) if not decoded]
        if not asked.any():
            return Decoded.nothing(nothing)
        batch = PromptBatch(
            points=np.concatenate([running.all_points[prompted], new.all_points])[asked],
            labels=np.concatenate([running.all_labels[prompted], new.all_labels])[asked],
            boxes=np.concatenate([running.box[prompted], new.box])[asked],
            mask_logits=None,
            has_mask=np.zeros(asked.sum(), np.bool_),
        )
        feeds = running.decoded & self.settings.feeds_mask
        before = [one if fed else None for one, fed in zip(self._logits, feeds, strict=True)]
        truths = those(self._truths, begun.truths) if self.data.labelled else None
        boxes = self.settings.shown_prompts.shows_mask_box
        previous = those(before, [None] * len(new))
        made = Decoded.of(look.decode(those(self._seen, begun.seen), batch, previous, truths, boxes))
        if self._agreement:
            made.agreement = self._agreement.of(those(self._scenes, begun.scenes), made.logits)
        return made if asked.all() else made.among(asked, nothing)

    def _finish_step(self, acted: Rows, prompted: Rows, decoded: Decoded) -> NDArray[np.float64]:
        before = Quality(self.quality.iou[acted].copy(), self.quality.dice[acted].copy())
        agreed = self._agreed[acted]
        hit = np.zeros(len(self.episodes))
        for row in prompted:
            hit[row] = hit_reward(self.episodes, row, self._truths[row], by_module=self.labeler is not None)
        self._update_masks(prompted, decoded, first=False)
        self.episodes.decoded[prompted] = True
        self._observer.count(acted)
        if self.best is not None:
            self.best.note(self, prompted, decoded, first=False)
            for row in acted[self.episodes.terminated[acted]]:
                self._update_masks(np.array([row]), self.best.of(int(row)), first=False)
        after = Quality(self.quality.iou[acted], self.quality.dice[acted])
        cost = self.settings.prompt_cost * np.isin(acted, prompted)
        return weighted(self._reward, Outcome(before, after, hit[acted], self._agreed[acted] - agreed)) - cost

    def _install(self, begun: _Begun, decoded: Decoded) -> None:
        self.episodes.put(begun.rows, begun.episodes)
        for i, row in enumerate(begun.rows):
            self._seen[row], self._truths[row] = begun.seen[i], begun.truths[i]
            self._scenes[row] = begun.scenes[i]
            if self.labeler is not None:
                self.labeler.begin(row, _known(begun.label_scenes[i]))
            frame, image = self.attention.frame(begun.seen[i]), self.data.image(int(begun.episodes.image[i]))
            self._observer.begin(row, image, begun.embeddings[i], frame)
        self._update_masks(begun.rows, decoded, first=True)
        self._observer.count(begun.rows)
        if self.best is not None:
            self.best.note(self, begun.rows, decoded, first=True)
        self.first_iou[begun.rows] = self.quality.iou[begun.rows]

    def _update_masks(self, rows: Rows, decoded: Decoded, *, first: bool) -> None:
        """Take over new masks; only small maps and scalars come to the host."""
        if not len(rows):
            return
        for row, logits in zip(rows, decoded.logits, strict=True):
            self._logits[row] = logits
        self.quality.iou[rows], self.quality.dice[rows] = decoded.iou, decoded.dice
        self._agreed[rows] = decoded.agreement
        self.episodes.mask_box[rows] = decoded.mask_box
        self._observer.show(rows, decoded.logits, decoded.predicted_iou, first=first)

    # ------------------------------------------------------------------ looking

    def observations(self, rows: Rows | slice = slice(None)) -> dict[str, NDArray]:
        """Fresh copies of the observations of `rows`, stacked."""
        return self._observer.get(rows)

    def observation(self, row: int) -> dict[str, NDArray]:
        """Fresh copy of the observation of one row."""
        return {name: array[0] for name, array in self.observations(np.array([row])).items()}

    def info(self, row: int) -> dict[str, Any]:
        """Quality and identity of one row's episode, as plain Python values."""
        text = {} if self.text_embedding is None else {"text": self.text}
        return {
            "iou": float(self.quality.iou[row]),
            "dice": float(self.quality.dice[row]),
            "prompts": int(self.episodes.prompts[row]),
            "image": self.data.image_ids[self.episodes.image[row]],
            "object": int(self.episodes.object_id[row]),
            "source": self.data.source,
            **text,
        }

    def action_masks(self) -> NDArray[np.bool_]:
        """(N, actions) bool: what may be done. Discrete action modes only."""
        masks = getattr(self.actions, "masks", None)
        if masks is None:
            raise ValueError(f"action masks exist for discrete actions, not for {self.settings.action_mode!r}")
        return masks(self.episodes)

    def present(self, row: int) -> tuple[Any, Tensor]:
        """What `attention` knows of a row's episode, and its logits, which are not to be changed."""
        return self._seen[row], _known(self._logits[row])

    def mask(self, row: int) -> NDArray[np.bool_]:
        """(H, W) bool, the current mask at full size."""
        return self.attention.mask(*self.present(row)).cpu().numpy()

    def truth(self, row: int) -> NDArray[np.bool_]:
        """(H, W) bool, the object itself. For oracles and pictures; never for agents.

        Raises:
            ValueError: The images have no truths.
        """
        return self.truth_tensor(row).cpu().numpy()

    def truth_tensor(self, row: int) -> Tensor:
        """`truth` on the model's device; not to be changed."""
        if not self.data.labelled:
            raise ValueError(f"{self.data.name} has no truths: nothing can be measured, and oracles cannot act")
        return _known(self._truths[row])


@dataclass
class _Begun:
    """Episodes about to begin: the rows they will take, their arrays, embeddings, what is looked at, objects."""

    rows: Rows
    episodes: Episodes
    embeddings: list[ImageEmbedding]
    seen: list[Any]
    truths: list[Tensor | None]
    scenes: list[Scene | None]
    label_scenes: list[LabelScene | None]


def _known(value: Any) -> Any:
    assert value is not None, "reset() fills every row before anything reads it"
    return value


def _checked_clicks(points: Any, size: tuple[int, ...], most: int) -> NDArray[np.float32]:
    """Clicks (k, 3) x, y, label in the pixels of an image of `size`; ValueError if they are none or too many."""
    try:
        clicks = np.asarray(points, np.float32) if len(points) else NO_CLICKS
    except (TypeError, ValueError):
        clicks = np.zeros(0, np.float32)
    if clicks.ndim != 2 or clicks.shape[1] != 3 or len(clicks) > most or not np.isin(clicks[:, 2], (0, 1)).all():
        raise ValueError(
            f"reset option 'points' must be up to {most} times x, y, label with label 1 (foreground) or 0 (background),"
            f" got {points!r}"
        )
    limit = np.array([size[1] - 1, size[0] - 1])
    if not ((clicks[:, :2] >= 0) & (clicks[:, :2] <= limit)).all():
        raise ValueError(f"reset option 'points' leaves the image of {size[1]} x {size[0]} px: {points!r}")
    return clicks


def _plain(image: Any) -> int | str:
    """NumPy integers and strings as Python's."""
    return int(image) if isinstance(image, numbers.Integral) else str(image)
