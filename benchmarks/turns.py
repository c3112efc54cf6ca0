"""What the sections of throughput.py share: images and prompts, methods that take turns, rows of results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from loop_env import look_at
from numpy.typing import NDArray
from segment_anything import SamPredictor

from sam_gym._utils.boxes import noisy_box
from sam_gym._utils.fetching import embeddings_dir
from sam_gym._utils.progress import progress_bar
from sam_gym.data import SegmentationData, load_data
from sam_gym.sam import ImageEmbedding, PromptBatch, SamBackend, load_sam

IMAGES = 16


@dataclass
class Row:
    """One line of the result: seconds per prompt (or what `unit` says), and the ratio to the section's baseline."""

    section: str
    method: str
    n: int
    value: float
    unit: str
    ratio: tuple[float, float, float] | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """As text."""
        ratio = "" if self.ratio is None else "{1:.2f} ({0:.2f} to {2:.2f})".format(*self.ratio)
        return [self.section, self.method, str(self.n) if self.n else "", f"{self.value:.4g} {self.unit}".strip()
                if np.isfinite(self.value) else "not measured", ratio, self.note]  # fmt: skip


HEAD = ["section", "method", "N", "median", "times faster (quartiles)", "note"]


def take_turns(methods: dict[str, Callable[[], Any]], repeats: int, title: str) -> dict[str, NDArray[np.float64]]:
    """Seconds of each method in each turn, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    with progress_bar(title, repeats + 1, "turn") as bar:
        for turn in range(repeats + 1):
            for name, method in methods.items():
                started = time.perf_counter()
                method()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
            bar.update()
    return {name: np.array(values) for name, values in seconds.items()}


def quartiles(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """25, 50 and 75 %."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def compared(section: str, n: int, seconds: dict[str, NDArray], per: int, unit: str) -> list[Row]:
    """Rows of a section whose first method is the baseline; seconds are divided by `per` and given in ms."""
    baseline = next(iter(seconds.values()))
    return [
        Row(section, name, n, float(np.median(values)) / per * 1e3, unit, quartiles(baseline / values))
        for name, values in seconds.items()
    ]


class Timed:
    """A function that adds up the seconds spent in it, over all threads."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        started = time.perf_counter()
        result = self.function(*args, **kwargs)
        self.seconds += time.perf_counter() - started
        return result


class Bench:
    """Real images, their embeddings and prompts; SamPredictor and the backends over one and the same model."""

    def __init__(self, arguments: Any) -> None:  # those of throughput.py
        self.arguments = arguments
        self.data: SegmentationData = load_data("isbi2012", "train", arguments.data)
        self.exact = SamBackend(arguments.checkpoint, "cpu", "exact", disk_cache=embeddings_dir())
        self.fast = SamBackend(arguments.checkpoint, "cpu", "fast", disk_cache=embeddings_dir())
        self.predictor = SamPredictor(load_sam(arguments.checkpoint))
        rng = np.random.default_rng(0)
        self.images: list[NDArray[np.uint8]] = []
        self.handles: list[ImageEmbedding] = []
        self.boxes: list[NDArray[np.float32]] = []
        images = 1 if set(arguments.sections) == {"one"} else IMAGES  # a ViT takes its time for each
        with progress_bar("encoding", images, "image") as bar:
            for i in range(images):
                image = self.data.image(i)
                self.images.append(image)
                self.handles += self.exact.encode([image])
                row = int(rng.choice(np.flatnonzero(self.data.objects.image_index == i)))
                self.boxes.append(noisy_box(self.data.objects.box[row], 0.2, image.shape[:2], rng))
                bar.update()
        # contiguous, as SamPredictor has them: ours are channels last, which the stock decoder is slower with
        self.features = [handle.features[None].contiguous() for handle in self.handles]

    def official(self, n: int) -> list[NDArray[np.bool_]]:
        """Masks at full size by SamPredictor, image after image."""
        masks = []
        for i in range(n):
            look_at(self.predictor, self.handles[i], self.features[i])
            masks.append(self.predictor.predict(box=self.boxes[i], multimask_output=False)[0][0])
        return masks

    def ours(self, backend: SamBackend, n: int) -> list[NDArray[np.bool_]]:
        """The same masks in one call."""
        prompts = PromptBatch.from_lists(boxes=self.boxes[:n])
        full = backend.decode(self.handles[:n], prompts, full=True).full
        assert full is not None
        return [mask[0].numpy() for mask in full]

    def clicks(self, n: int, points: int) -> PromptBatch:
        """Box and so many clicks in each of n images."""
        rng = np.random.default_rng(points)
        height, width = self.handles[0].image_size
        rows = range(n)
        return PromptBatch.from_lists(
            boxes=[self.boxes[i % IMAGES] for i in rows],
            points=[rng.uniform(0, (width - 1, height - 1), (points, 2)) for _ in rows],
            labels=[rng.integers(0, 2, points) for _ in rows],
        )
