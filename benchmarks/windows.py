"""Section "fovea" of throughput.py: full and foveated decodes beside a loop over SamPredictor, on several datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from loop_env import look_at
from numpy.typing import NDArray
from turns import IMAGES, Bench, Row, compared, take_turns

from sam_gym._utils.boxes import noisy_box
from sam_gym._utils.progress import progress_bar
from sam_gym.data import load_data
from sam_gym.envs.episode import view_of
from sam_gym.envs.prompt import PromptSettings
from sam_gym.sam import ImageEmbedding, PromptBatch, SamBackend

DATASETS = ("isbi2012", "vnc-mitochondria", "dsb2018")
MASKS, TOGETHER, CLICKS = 32, 16, 3

Masks = list[NDArray[np.bool_]]


def fovea(bench: Bench) -> Iterable[Row]:
    """A box, three clicks and a mask prompt on each of 32 objects, 16 in a call, one thread, masks at full size out."""
    threads = torch.get_num_threads()
    for dataset in DATASETS if bench.arguments.data == "real" else DATASETS[:1]:
        methods, sides = _methods(bench, dataset)
        torch.set_num_threads(1)
        try:
            reference, *made = (method() for method in methods.values())
            seconds = take_turns(methods, bench.arguments.repeats, f"{dataset}, one thread")
        finally:
            torch.set_num_threads(threads)
        rows = compared(f"one thread, {dataset}", TOGETHER, seconds, MASKS, "ms/prompt")
        for row, masks in zip(rows[1:], made, strict=True):
            overlaps = [(a & b).sum() / max((a | b).sum(), 1) for a, b in zip(masks, reference, strict=True)]
            row.note = f"IoU with SamPredictor's masks {np.mean(overlaps):.4f} mean"
        rows[-1].note += ", windows: " + ", ".join(f"{sides.count(side)} of {side}" for side in sorted(set(sides)))
        yield from rows


def _methods(bench: Bench, dataset: str) -> tuple[dict[str, Callable[[], Masks]], list[int]]:
    """What makes the same masks, the loop first; and the sides of the windows."""
    data, rng = load_data(dataset, "train", bench.arguments.data), np.random.default_rng(0)
    some = data.objects.image_index < IMAGES
    rows = np.flatnonzero(some)[np.linspace(0, some.sum() - 1, MASKS).round().astype(int)]
    images = [data.image(int(data.objects.image_index[row])) for row in rows]
    boxes = [noisy_box(data.objects.box[row], 0.2, image.shape[:2], rng)
             for row, image in zip(rows, images, strict=True)]  # fmt: skip
    points = [rng.uniform(box[:2], np.minimum(box[2:], np.array(image.shape[1::-1]) - 1), (CLICKS, 2))
              for box, image in zip(boxes, images, strict=True)]  # fmt: skip
    truths = [data.mask(int(data.objects.image_index[row]), int(data.objects.object_id[row])) for row in rows]
    labels = [[int(truth[int(y), int(x)]) for x, y in clicks] for truth, clicks in zip(truths, points, strict=True)]
    with progress_bar(f"encoding {dataset}", MASKS, "image") as bar:
        handles = []
        for image in images:
            handles += bench.exact.encode([image])
            bar.update()
    prompts = [PromptBatch.from_lists(boxes=boxes[part], points=points[part], labels=labels[part]) for part in PARTS]
    alone = [PromptBatch.from_lists(boxes=boxes[part]) for part in PARTS]
    before = [bench.exact.decode(handles[part], box).logits[:, 0] for part, box in zip(PARTS, alone, strict=True)]
    methods: dict[str, Callable[[], Masks]] = {
        "loop over SamPredictor, cached features": _loop(bench, handles, prompts, before),
        "SamBackend exact": _full(bench.exact, handles, prompts, before),
    }
    sides: list[int] = []
    backends = {"exact": bench.exact} if bench.arguments.exact_only else {"exact": bench.exact, "fast": bench.fast}
    for name, backend in backends.items():
        views = (view_of(box, PromptSettings.view_scale) for box in boxes)
        windows = [backend.window(*pair) for pair in zip(backend.encode(images), views, strict=True)]
        sides = [window.side for window in windows]
        first = [[one[0] for one in backend.decode_windows(windows[part], box).logits]
                 for part, box in zip(PARTS, alone, strict=True)]  # fmt: skip
        methods[f"SamBackend {name}, foveated"] = _foveated(backend, windows, prompts, first)
    return methods, sides


PARTS = [slice(start, start + TOGETHER) for start in range(0, MASKS, TOGETHER)]


def _loop(
    bench: Bench, handles: list[ImageEmbedding], prompts: list[PromptBatch], before: list[torch.Tensor]
) -> Callable[[], Masks]:
    # contiguous, as SamPredictor has them: ours are channels last, which the stock decoder is slower with
    features = [handle.features[None].contiguous() for handle in handles]

    def run() -> Masks:
        made = []
        for i, handle in enumerate(handles):
            call, row = divmod(i, TOGETHER)
            look_at(bench.predictor, handle, features[i])
            given = prompts[call].points[row], prompts[call].labels[row], prompts[call].boxes[row]
            mask = before[call][row][None].numpy()
            made.append(bench.predictor.predict(*given, mask, multimask_output=False)[0][0])
        return made

    return run


def _full(
    backend: SamBackend, handles: list[ImageEmbedding], prompts: list[PromptBatch], before: list[torch.Tensor]
) -> Callable[[], Masks]:
    fed = [replace(some, mask_logits=masks, has_mask=np.ones(len(some), np.bool_))
           for some, masks in zip(prompts, before, strict=True)]  # fmt: skip

    def run() -> Masks:
        calls = (backend.decode(handles[part], some, full=True) for part, some in zip(PARTS, fed, strict=True))
        return [mask[0].numpy() for masks in calls for mask in masks.full or ()]

    return run


def _foveated(backend: SamBackend, windows: list[Any], prompts: list[PromptBatch], before: list) -> Callable[[], Masks]:
    def run() -> Masks:
        calls = (
            backend.decode_windows(windows[part], some, masks, full=True)
            for part, some, masks in zip(PARTS, prompts, before, strict=True)
        )
        return [mask[0].numpy() for masks in calls for mask in masks.full or ()]

    return run
