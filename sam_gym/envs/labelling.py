"""Labels of clicks by the recalibration module: the agent says where, the module says whether it is foreground.

What the module sees is what an agent may see: SAM's embedding in the view, the mask as observed, and, for the explicit
branch, a CLIP's similarity map. Nothing here has access to ground truth, and nothing here trains: whoever does
(`sam_gym.sb3.recalibrating`) updates `Labeler.module` in place or puts another one there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from sam_gym._utils.boxes import Floats
from sam_gym.envs.episode import Cells, Episodes, checked_choices, in_view
from sam_gym.envs.observations import embedding_map
from sam_gym.envs.observers import Observer, Rows
from sam_gym.sam.cache import EmbeddingCache, content_key
from sam_gym.sam.interface import ImageEmbedding

if TYPE_CHECKING:
    from sam_gym.envs.settings import Settings
    from sam_gym.semantics.recalibration import RecalibrationModule

POLICY, UNTRAINED = "policy", "untrained"
"""Who labels, besides a file: the agent itself; a module that knows nothing yet."""

NOTHING, TRUTH, LABELER = "nothing", "truth", "labeler"
"""Where the clicks come from that an episode begins with."""

MOST_TILES = 4
"""Parts per side in which an image is shown to the CLIP, at most; a similarity map costs the square of it."""

MAP_BYTES = 2**25
"""Memory for similarity maps, 4 KiB each at a grid of 32."""


def clicks_of_truth(truth: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """(2, 3) x, y, label: a random pixel of the foreground and one of the background, as far as there are any.

    Source: AlignSAM, how episodes begin in training. Where agents are measured it would give the truth away.
    """
    clicks = []
    for label, region in ((1, truth), (0, ~truth)):
        rows, columns = np.nonzero(region)
        if len(rows):
            pixel = int(rng.integers(len(rows)))
            clicks.append((columns[pixel], rows[pixel], label))
    return np.array(clicks, np.float32)


class LabelledCells(Cells):
    """Discrete(G * G + 1): a click at the centre of a cell, labelled by a module; the last action says stop.

    Args:
        grid: G.
        stops: Whether there is a stop action; else it is Discrete(G * G), and `stop` is None.
        repeats: Whether a cell may be clicked again.

    Attributes:
        labeler: Who is asked; the engine fills it in.
    """

    def __init__(self, grid: int, *, stops: bool = True, repeats: bool = False) -> None:
        super().__init__(grid)
        self.repeats = repeats
        self.stop = self.cells if stops else None
        self.space: spaces.Space = spaces.Discrete(self.cells + stops)
        self.labeler: Labeler | None = None

    def apply(self, episodes: Episodes, rows: Rows, actions: NDArray) -> None:
        """Write the prompts that `actions` (one per row) mean into `episodes`."""
        assert self.labeler is not None, "the engine says who labels"
        stop = "" if self.stop is None else f", {self.stop} stop"
        chosen = checked_choices(actions, self.cells - (self.stop is None), f"0..{self.cells - 1} cells{stop}")
        clicking = chosen != self.stop if self.stop is not None else np.ones(len(chosen), np.bool_)
        episodes.stopped[rows[~clicking]] = True
        rows, cells = rows[clicking], chosen[clicking].astype(np.intp)
        for row, cell, label in zip(rows, cells, self.labeler.labels(rows, self.centres[cells]), strict=True):
            self.click(episodes, row, int(cell), int(label))

    def masks(self, episodes: Episodes) -> NDArray[np.bool_]:
        """(N, G*G + 1) bool: cells whose centre lies in the image, unused if repeats are out, and stop.

        Where no cell is left and there is no stop either, all cells in the image may be clicked again.
        """
        inside = self.inside(episodes)
        free = inside if self.repeats else inside & ~episodes.used
        if self.stop is None:
            return np.where(free.any(axis=1, keepdims=True), free, inside)
        return np.concatenate([free, np.ones((len(episodes), 1), np.bool_)], axis=1)


@dataclass(frozen=True)
class LabelScene:
    """What a module sees of an episode from first to last: view (3,), embedding (C, g, g), similarity map (g, g)."""

    view: Floats
    embedding: Tensor
    similarity: Tensor | None


class Labeler:
    """The recalibration module beside N episodes.

    Args:
        settings: Say which module, and which CLIP makes similarity maps.
        channels: C of SAM's embeddings.
        device: Where the module runs.
        episodes: The N episodes.
        observer: What of their masks is observed.
        text: The target, in words.

    Attributes:
        module: The module; it may be replaced by another one, see `use`.

    Raises:
        ValueError: The module cannot be had, or is for other embeddings.
    """

    def __init__(
        self, settings: Settings, channels: int, device: torch.device, episodes: Episodes, observer: Observer, text: str
    ) -> None:
        from sam_gym.semantics.recalibration import RecalibrationModule

        self._settings, self._channels, self._device, self._text = settings, channels, device, text
        self._episodes, self._observer = episodes, observer
        self._scenes: list[LabelScene | None] = [None] * len(episodes)
        self._similarities = EmbeddingCache(MAP_BYTES)
        who = settings.labeler
        self.use(
            RecalibrationModule(embedding_channels=channels) if who == UNTRAINED else RecalibrationModule.load(who)
        )

    def use(self, module: RecalibrationModule) -> None:
        """Label with this module from the next episodes on; ValueError if it is for other embeddings."""
        if module.settings.embedding_channels != self._channels:
            raise ValueError(
                f"the recalibration module is for embeddings of {module.settings.embedding_channels} channels, those "
                f"of checkpoint {self._settings.checkpoint!r} have {self._channels}"
            )
        self.module = module.to(self._device)

    # ------------------------------------------------------------------ scenes

    def scene(self, image: NDArray[np.uint8], view: Floats, embedding: ImageEmbedding) -> LabelScene:
        """What the module sees of an image (H, W, 3) in a view for as long as an episode lasts."""
        seen = embedding_map(embedding, view, self.module.settings.grid)
        return LabelScene(view, seen, self._similarity(image, view) if self.module.needs_similarity else None)

    def begin(self, row: int, scene: LabelScene) -> None:
        """An episode begins in `row`."""
        self._scenes[row] = scene

    def first_clicks(self, scene: LabelScene, image_size: tuple[int, int]) -> Floats:
        """(2, 3) x, y, label: where the module is surest of foreground and of background before there is a mask.

        Source: AlignSAM, how episodes begin where no truth is to be had.
        """
        with torch.no_grad():
            blank = torch.ones(1, *scene.embedding.shape[1:], device=self._device)
            similarity = None if scene.similarity is None else scene.similarity[None]
            logits = self.module(scene.embedding[None], blank, similarity)[0].cpu()
        centres = in_view(scene.view, Cells(len(logits)).centres)
        size = np.array(image_size[::-1])
        inside = torch.as_tensor(((centres >= 0) & (centres < size)).all(axis=1))
        flat = logits.flatten()
        chosen = flat.masked_fill(~inside, -torch.inf).argmax(), flat.masked_fill(~inside, torch.inf).argmin()
        # a pixel's centre is its integer coordinate
        points = np.clip(centres[[int(place) for place in chosen]] - 0.5, 0, size - 1)
        return np.concatenate([points, [[1], [0]]], axis=1).astype(np.float32)

    def _similarity(self, image: NDArray[np.uint8], view: Floats) -> Tensor:
        from sam_gym.semantics.captions import rivals
        from sam_gym.semantics.models import load_clip
        from sam_gym.semantics.similarity import similarity_map

        grid, settings = self.module.settings.grid, self._settings
        key = f"{grid}:{view.tobytes().hex()}:{content_key(image)}"
        found = self._similarities.get(key)
        if found is None:
            clip = load_clip(settings.clip, settings.device)
            tiles = int(np.clip(round(max(image.shape[:2]) / clip.image_size), 1, MOST_TILES))
            whole = similarity_map(clip, [image], [self._text], [rivals(self._text)], tiles=tiles).to(self._device)
            shares = in_view(view, Cells(grid).centres) / np.array(image.shape[1::-1], np.float32)
            places = torch.as_tensor(2 * shares - 1, dtype=torch.float32, device=self._device).view(1, grid, grid, 2)
            sampled = F.grid_sample(whole[:, None], places, padding_mode="border", align_corners=False)[0, 0]
            found = sampled * (places[0].abs() <= 1).all(dim=-1)  # nothing outside the image
            self._similarities.put(key, found)
        return found

    # ----------------------------------------------------------------- episodes

    def inputs(self, rows: Rows, *, unprompted: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the module sees of running episodes, in the order of its arguments.

        Args:
            rows: Of the episodes.
            unprompted: As it was before the first prompt.

        Returns:
            Embeddings (n, C, g, g), masks (n, g, g) and similarity maps (n, g, g) or None, float32 on the device.
        """
        scenes = [scene for row in rows if (scene := self._scenes[row]) is not None]
        seen = torch.as_tensor(self._observer.masks(rows), device=self._device).float() / 255
        masks = F.adaptive_avg_pool2d(seen[:, None], self.module.settings.grid)[:, 0]
        blank = torch.as_tensor(~self._episodes.decoded[rows] | unprompted, device=self._device)
        masks = torch.where(blank[:, None, None], torch.ones_like(masks), masks)
        maps = [scene.similarity for scene in scenes if scene.similarity is not None]
        return torch.stack([scene.embedding for scene in scenes]), masks, torch.stack(maps) if maps else None

    @torch.no_grad()
    def logits(self, rows: Rows) -> Tensor:
        """(n, 2g, 2g) logits of foreground in the views of running episodes, on the device.

        Row by row, so that rounding does not depend on who else is there.
        """
        parts = [[None] * len(rows) if whole is None else whole.split(1) for whole in self.inputs(rows)]
        return torch.cat([self.module(*row) for row in zip(*parts, strict=True)])

    def labels(self, rows: Rows, places: Floats) -> NDArray[np.int8]:
        """Is there foreground, with a probability of .5 at least?

        Args:
            rows: n running episodes.
            places: (n, 2) or (n, P, 2), x and y as shares of the view's side.

        Returns:
            (n,) or (n, P) int8, 1 or 0.
        """
        if not len(rows):
            return np.zeros(places.shape[:-1], np.int8)
        where = torch.as_tensor(2 * places.reshape(len(rows), -1, 1, 2) - 1, device=self._device)
        sampled = F.grid_sample(self.logits(rows)[:, None], where, padding_mode="border", align_corners=False)
        return (sampled.reshape(places.shape[:-1]) >= 0).to(torch.int8).cpu().numpy()
