"""N episodes around one backend: the only step function of the suite.

`PromptEngine` holds the episodes as arrays and makes one decode call per step, whatever N is and however many of them
begin anew in that step. The single environment is N = 1 of it; seeding, autoreset and Gymnasium's interfaces are the
environments' business (`sam_gym.envs.base`), and what a task is its `Settings` say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from sam_gym.data import DATASETS, SegmentationData, load_data, load_whole_class
from sam_gym.data.copies import with_copies
from sam_gym.data.windows import load_windows
from sam_gym.envs.agreement import Agreement, Scene, embed_text
from sam_gym.envs.attention import ATTENTIONS
from sam_gym.envs.decoded import Decoded
from sam_gym.envs.episode import Cells, Episodes, view_of
from sam_gym.envs.keeping import BEST_PREDICTED, BestMasks
from sam_gym.envs.labelling import LABELER, Labeler, LabelledCells, LabelScene
from sam_gym.envs.observers import OBSERVERS, Observer, Rows
from sam_gym.envs.posing import NO_CLICKS, Pose, pose_of
from sam_gym.envs.rendering import render_episode
from sam_gym.envs.rewards import Outcome, Quality, hit_reward, parse_reward, weighted
from sam_gym.envs.settings import Settings
from sam_gym.sam.backend import get_backend
from sam_gym.sam.interface import ImageEmbedding
from sam_gym.sam.masks import measure
from sam_gym.sam.prompts import PromptBatch

ACTION_MASK = "action_mask"
"""Entry of observations that says which actions are allowed, where `Settings.action_mask` asks for it."""

NO_ROWS: Rows = np.zeros(0, np.intp)


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
            if settings.describes:
                images = load_windows(*which[:3], *settings.windows, settings.min_area)
            elif settings.whole_class:
                images = load_whole_class(*which)
            else:
                images = load_data(*which, settings.root, settings.shares, settings.window)
            images = settings.choose(images)
            images = with_copies(images, settings.copies) if settings.copies else images
        self.data = images
        spec = DATASETS.get(settings.dataset)
        self.text = spec.text if spec else ""  # nobody says what the objects of a folder are
        self.text_embedding = embed_text(self.text, settings) if settings.whole_class or settings.describes else None
        self.backend = get_backend(settings.checkpoint, settings.device, settings.precision)
        n = num_envs
        self.episodes = settings.blank(n)
        self._observer: Observer = OBSERVERS[settings.observation](
            self.episodes, self.backend, settings.grid, settings.shown_prompts, self.text_embedding
        )
        self.observation_space = self._observer.space
        if settings.action_mask:
            allowed = spaces.MultiBinary(self.action_masks().shape[1])
            self.observation_space = spaces.Dict({**self._observer.space.spaces, ACTION_MASK: allowed})
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
        return pose_of(self.settings, self.data, rng, request)

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

    def click(self, row: int, xy: NDArray[np.float64], label: int) -> None:
        """A click anywhere in the image, which no action need be able to say; for people beside agents.

        Args:
            row: The episode.
            xy: (2,) x and y in pixels of the image.
            label: 1 foreground, 0 background.
        """
        self.episodes.click(row, xy, label)
        if isinstance(self.actions, Cells) and (cell := self.actions.cell_at(self.episodes, row, xy)) is not None:
            self.episodes.used[row, cell] = True
        self.episodes.steps[row] += 1
        self._decode_all(np.array([row]), {})

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
        episodes = settings.blank(len(fresh))
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
            episodes.decoded[i] |= settings.has_cue and pose.mask is None
        seen = [self.attention.look(*one) for one in zip(embeddings, episodes.view, strict=True)]
        scenes = [
            self._agreement.scene(self.data.image(pose.image), view, embedding, self.attention.frame(one))
            if self._agreement
            else None
            for pose, view, embedding, one in zip(fresh.values(), episodes.view, embeddings, seen, strict=True)
        ]
        rows = np.fromiter(fresh, np.intp, len(fresh))
        given = [
            None if pose.mask is None else self.attention.given(one, embedding, pose.mask)
            for pose, one, embedding in zip(fresh.values(), seen, embeddings, strict=True)
        ]
        return _Begun(rows, episodes, embeddings, seen, truths, scenes, label_scenes, given)

    def _decode(self, prompted: Rows, begun: _Begun) -> Decoded:
        """The one decode call of a step: the prompts of running episodes, then what new ones begin with.

        A new episode that begins with nothing has an empty mask that nobody decoded or measured; one that begins with a
        mask of its own has that.
        """
        running, new, look = self.episodes, begun.episodes, self.attention
        asked = np.concatenate([np.ones(len(prompted), np.bool_), new.decoded])

        def those(held: list, staged: list) -> list:
            return list(compress([held[row] for row in prompted] + staged, asked))

        unmade = [
            look.nothing(seen) if given is None else given
            for seen, given, decoded in zip(begun.seen, begun.given, new.decoded, strict=True)
            if not decoded
        ]
        if not asked.any():
            return self._with_given(Decoded.nothing(unmade), begun)
        batch = PromptBatch(
            points=np.concatenate([running.sent_points[prompted], new.sent_points])[asked],
            labels=np.concatenate([running.sent_labels[prompted], new.sent_labels])[asked],
            boxes=np.concatenate([running.box[prompted], new.box])[asked],
            mask_logits=None,
            has_mask=np.zeros(asked.sum(), np.bool_),
        )
        feeds = running.decoded & self.settings.feeds_mask
        before = [one if fed else None for one, fed in zip(self._logits, feeds, strict=True)]
        truths = those(self._truths, begun.truths) if self.data.labelled else None
        boxes = self.settings.shown_prompts.shows_mask_box
        previous = those(before, [None] * len(new))
        seen, granularity = those(self._seen, begun.seen), self.settings.granularity
        three = granularity is not None
        made = Decoded.of(look.decode(seen, batch, previous, truths, boxes or three, multimask=three), granularity)
        if self._agreement:
            made.agreement = self._agreement.of(those(self._scenes, begun.scenes), made.logits)
        return made if asked.all() else self._with_given(made.among(asked, unmade), begun)

    def _with_given(self, decoded: Decoded, begun: _Begun) -> Decoded:
        """Measure, in place, the masks that new episodes are given; new episodes come last in `decoded`."""
        last = decoded[len(decoded.logits) - len(begun.given) :]
        for i, given in enumerate(begun.given):
            if given is None:
                continue
            last.iou[i] = last.dice[i] = np.nan
            if (truth := begun.truths[i]) is not None:
                measured = measure(self.attention.mask(begun.seen[i], given)[None, None], truth[None], boxes=False)
                last.iou[i], last.dice[i] = measured.iou.item(), measured.dice.item()
            if self._agreement:
                last.agreement[i] = self._agreement.of([_known(begun.scenes[i])], [given])[0]
        return decoded

    def _finish_step(self, acted: Rows, prompted: Rows, decoded: Decoded) -> NDArray[np.float64]:
        before, agreed = self._before(acted)
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
        after = self.quality.at(acted)
        cost = self.settings.prompt_cost * np.isin(acted, prompted)
        return weighted(self._reward, Outcome(before, after, hit[acted], self._agreed[acted] - agreed)) - cost

    def _before(self, acted: Rows) -> tuple[Quality, NDArray[np.float64]]:
        """What a step is measured against: quality and agreement of the present masks."""
        return self.quality.at(acted), self._agreed[acted]

    def _install(self, begun: _Begun, decoded: Decoded) -> None:
        self.episodes.put(begun.rows, begun.episodes)
        for i, row in enumerate(begun.rows):
            self._seen[row], self._truths[row] = begun.seen[i], begun.truths[i]
            self._scenes[row] = begun.scenes[i]
            if self.labeler is not None:
                self.labeler.begin(row, _known(begun.label_scenes[i]))
            frame, image = self.attention.frame(begun.seen[i]), self.data.image(int(begun.episodes.image[i]))
            self._observer.begin(row, image, begun.embeddings[i], frame)
            self.episodes.decoded[row] |= begun.given[i] is not None  # it is fed back as if SAM had made it
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
        seen = self._observer.get(rows)
        if self.settings.action_mask:
            seen[ACTION_MASK] = self.action_masks()[rows].astype(np.int8)
        return seen

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

    def picture(self, row: int) -> NDArray[np.uint8]:
        """One episode as people see it, (H, W, 3) uint8."""
        return render_episode(self, row)

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
    """Episodes about to begin: the rows they will take, their arrays, embeddings, what is looked at, objects, masks."""

    rows: Rows
    episodes: Episodes
    embeddings: list[ImageEmbedding]
    seen: list[Any]
    truths: list[Tensor | None]
    scenes: list[Scene | None]
    label_scenes: list[LabelScene | None]
    given: list[Tensor | None]


def _known(value: Any) -> Any:
    assert value is not None, "reset() fills every row before anything reads it"
    return value
