"""What region-text scores are worth and cost: accuracy by view, scores of poor masks, time beside a decode.

    python benchmarks/semantics.py                          clip-micro; minutes
    python benchmarks/semantics.py --model ViT-B-32/laion2b_s34b_b79k     another CLIP
    python benchmarks/semantics.py --sections accuracy      only some sections (see --help)

The view is chosen on the validation splits and only then asked about the test splits. Accuracies are means over
classes; their 95 % intervals are bootstraps over regions. Costs are medians over turns that scoring and decoding take
in one process, with quartiles. The picture shows where images resemble the texts.
Stores benchmarks/results/semantics.json, .md and .png; sections that are not asked for keep what is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy import ndimage
from throughput import quartiles, take_turns

from sam_gym._utils.boxes import tight_box
from sam_gym._utils.fetching import atomic_path, embeddings_dir, sha256_of, write_json
from sam_gym._utils.progress import progress_bar
from sam_gym.data import load_data
from sam_gym.data.smears import generate_smear
from sam_gym.data.synthetic import generate
from sam_gym.evaluation import report
from sam_gym.evaluation.bootstrap import bootstrap_mean
from sam_gym.sam import PromptBatch, SamBackend
from sam_gym.semantics.captions import EDGE, rivals
from sam_gym.semantics.models import MICRO, MICRO_FOLDER, load_clip
from sam_gym.semantics.scorer import RegionScorer
from sam_gym.semantics.similarity import similarity_map
from sam_gym.semantics.views import VIEWS
from sam_gym.semantics.zero_shot import TASKS, ZeroShotResult, classify, task_regions

RESULTS = Path(__file__).resolve().parent / "results"
SECTIONS = ("accuracy", "masks", "cost", "picture")
TILE = 512  # px; four tiles of each VNC section, as semantic targets are posed in them
MASK_OBJECTS = 40
COST_IMAGES = 64
ENCODED_IMAGES = 12
"""Of these, with SAM; their embeddings are decoded again and again, since what is in one does not change the time."""
SMEAR_TEXTS = ("nucleus of a white blood cell", "white blood cell", "background of a blood smear")
SECTION_TEXTS = ("mitochondrion", "membrane", "cell interior")
PICTURE_SEED = 20_000  # far from those of training


@dataclass(frozen=True)
class Arguments:
    """Measure region-text scores: accuracy by view, cost, similarity maps."""

    sections: tuple[str, ...] = SECTIONS
    """Which: accuracy, masks, cost, picture."""
    model: str = MICRO
    """The CLIP, as for sam_gym.semantics.models.load_clip."""
    checkpoint: str = "mobile_sam"
    """SAM weights, for the decode that scoring is compared with."""
    repeats: int = 9
    """Turns of each method."""


def measured(result: ZeroShotResult) -> dict[str, Any]:
    """Accuracy, its interval and accuracy by class, JSON-able."""
    counts = np.bincount(result.truth, minlength=len(result.texts))
    # Weighted so that the mean over regions is the mean over classes.
    weighted = result.right * (len(result.truth) / (len(result.texts) * counts[result.truth]))
    interval = bootstrap_mean(weighted)
    return {"accuracy": result.accuracy, "low": interval.low, "high": interval.high, "chance": result.chance,
            "regions": len(result.truth), "by_class": result.by_class}  # fmt: skip


def accuracy(arguments: Arguments) -> dict[str, Any]:
    """All views on the validation splits, then the best of them on the test splits."""
    clip = load_clip(arguments.model, "cpu")
    found: dict[str, Any] = {"val": {}, "test": {}}
    with progress_bar("regions", len(TASKS) * (len(VIEWS) + 1), "task") as bar:
        for task in TASKS:
            regions = task_regions(task, "val")
            for view in VIEWS:
                scorer = RegionScorer(clip, view)
                found["val"].setdefault(view, {})[task.name] = measured(classify(scorer, regions, task.texts))
                bar.update()
        means = {
            view: float(np.mean([row["accuracy"] for row in rows.values()])) for view, rows in found["val"].items()
        }
        found["view"] = max(means, key=lambda view: means[view])
        for task in TASKS:
            scorer = RegionScorer(clip, found["view"])
            found["test"][task.name] = measured(classify(scorer, task_regions(task, "test"), task.texts))
            bar.update()
    return found


ALTERED: dict[str, Callable[[NDArray[np.bool_]], NDArray[np.bool_]]] = {
    "object": lambda mask: mask,
    "grown by 0.2 radii": lambda mask: _grown(mask, 0.2),
    "by 0.5": lambda mask: _grown(mask, 0.5),
    "by 1": lambda mask: _grown(mask, 1.0),
    "left half": lambda mask: mask & (np.arange(mask.shape[1]) <= np.nonzero(mask)[1].mean()),
    "core": lambda mask: ndimage.distance_transform_edt(mask) > ndimage.distance_transform_edt(mask).max() / 2,
    "whole image": np.ones_like,
    "corner, 20 x 20 px": lambda mask: (
        np.add.outer(np.arange(mask.shape[0]) // 20, np.arange(mask.shape[1]) // 20) == 0
    ),
}
"""What an agent could offer instead of an object, made from its true mask."""


def _grown(mask: NDArray[np.bool_], radii: float) -> NDArray[np.bool_]:
    """The mask and what is within so many times the radius of a disk of its area."""
    return ndimage.distance_transform_edt(~mask) <= radii * np.sqrt(mask.sum() / np.pi)


def poor_masks(arguments: Arguments) -> dict[str, Any]:
    """Mean scores, against the rivals, of true masks of validation objects and of what is made from them."""
    scorer = RegionScorer(load_clip(arguments.model, "cpu"))
    found: dict[str, Any] = {}
    with progress_bar("masks", 3 * len(ALTERED), "kind") as bar:
        for task in (task for task in TASKS if task.name != "DSB with edges"):
            target = task.texts[0]
            regions = [region for region in task_regions(task, "val") if region.text == target]
            regions = regions[:: max(1, len(regions) // MASK_OBJECTS)]
            images, n = [region.image for region in regions], len(regions)
            row = found[f"{target}, {task.name} ({n})"] = {}
            for name, alter in ALTERED.items():
                offered = [alter(region.mask) for region in regions]
                row[name] = float(scorer.score(images, offered, [target] * n, [rivals(target)] * n).mean())
                bar.update()
    return found


def tiles() -> list[NDArray[np.uint8]]:
    """64 tiles of VNC: four of each training and validation section."""
    images = []
    for split in ("train", "val"):
        data = load_data("vnc-mitochondria", split, "real")
        for index in range(len(data.image_ids)):
            image = data.image(index)
            images += [image[y : y + TILE, x : x + TILE] for y in (0, TILE) for x in (0, TILE)]
    return images[:COST_IMAGES]


def cost(arguments: Arguments) -> dict[str, Any]:
    """Seconds for one decode of 64 boxes in 64 images, and for scoring the 64 masks that it gave."""
    images = tiles()
    clip = load_clip(arguments.model, "cpu")
    exact, fast = (
        SamBackend(arguments.checkpoint, "cpu", name, disk_cache=embeddings_dir()) for name in ("exact", "fast")
    )
    encoded = []
    with progress_bar("encoding", ENCODED_IMAGES, "image") as bar:
        for image in images[:ENCODED_IMAGES]:
            encoded += exact.encode([image])
            bar.update()
    handles = [encoded[i % ENCODED_IMAGES] for i in range(len(images))]
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, TILE - 160, (len(images), 2))
    prompts = PromptBatch.from_lists(boxes=np.concatenate([corners, corners + rng.uniform(40, 160, corners.shape)], 1))
    full = exact.decode(handles, prompts, full=True).full
    assert full is not None
    masks = [mask[0].numpy() for mask in full]
    targets = ["mitochondrion"] * len(images)
    distractors = [rivals(target) for target in targets]
    methods: dict[str, Any] = {
        "decode, exact": lambda: exact.decode(handles, prompts),
        "decode, fast": lambda: fast.decode(handles, prompts),
    }
    for view in VIEWS:
        scorer = RegionScorer(clip, view)
        methods[f"score, {view}"] = lambda scorer=scorer: scorer.score(images, masks, targets, distractors)
    seconds = take_turns(methods, arguments.repeats, "cost")
    extents = [np.ptp(tight_box(mask).reshape(2, 2), axis=0).max() for mask in masks if mask.any()]  # type: ignore[union-attr]
    return {
        "images": len(images), "image_side": TILE, "threads": torch.get_num_threads(),
        "median_mask_extent": float(np.median(extents)),
        "methods": {
            name: {"seconds": float(np.median(values)),
                   "times_cheaper_than_exact": quartiles(seconds["decode, exact"] / values),
                   "times_cheaper_than_fast": quartiles(seconds["decode, fast"] / values)}
            for name, values in seconds.items()
        },
    }  # fmt: skip


def pictured() -> list[tuple[str, NDArray[np.uint8], tuple[str, ...]]]:
    """Title, image and texts of each row of the picture; WBC and VNC are not republished."""
    nuclei = load_data("dsb2018", "val", "real")
    rows = [(f"DSB 2018, {nuclei.image_ids[i]}", nuclei.image(i), ("nucleus", EDGE, "background")) for i in (0, 1, 2)]
    seeds = (PICTURE_SEED, PICTURE_SEED + 1)
    rows += [(f"generated smear {seed}", generate_smear(seed).image, SMEAR_TEXTS) for seed in seeds]
    return rows + [(f"generated section {seed}", generate(seed).image, SECTION_TEXTS) for seed in seeds]


def picture(arguments: Arguments) -> dict[str, Any]:
    """Similarity maps of validation images of DSB 2018 and of generated ones for the texts of their classes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    clip, shown = load_clip(arguments.model, "cpu"), pictured()
    columns = 1 + max(len(texts) for _, _, texts in shown)
    figure, axes = plt.subplots(len(shown), columns, figsize=(2.2 * columns, 2.3 * len(shown)), layout="constrained")
    for row, (title, image, texts) in zip(axes, shown, strict=True):
        height, width = image.shape[:2]
        row[0].imshow(image)
        row[0].set_title(title, fontsize=7)
        others = [[other for other in texts if other != text] for text in texts]
        maps = similarity_map(clip, [image] * len(texts), texts, others, tiles=2)
        for axis, text, similarity in zip(row[1:], texts, maps, strict=True):
            axis.imshow(image.mean(axis=2), cmap="gray")
            axis.imshow(similarity.numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=1,
                        extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bilinear")  # fmt: skip
            axis.set_title(text, fontsize=7)
        for axis in row:
            axis.set_axis_off()
    file = RESULTS / "semantics.png"
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=60, format="png")
    plt.close(figure)
    return {"file": file.name}


def tables(stored: dict[str, Any]) -> str:
    """What is stored as Markdown."""
    parts = []
    if "accuracy" in stored:
        found = stored["accuracy"]["result"]
        head = ["split", "view", "task", "regions", "accuracy (95 % interval)", "chance", "by class"]
        rows = [("val", view, task, row) for view, tasks in found["val"].items() for task, row in tasks.items()]
        rows += [("test", found["view"], task, row) for task, row in found["test"].items()]
        parts.append(report.markdown([head, ["---"] * len(head), *(_cells(*row) for row in rows)]))
    if "masks" in stored:
        head = ["mean score of", *ALTERED]
        rows = [[name, *(f"{row[kind]:.3f}" for kind in ALTERED)] for name, row in stored["masks"]["result"].items()]
        parts.append(report.markdown([head, ["---"] * len(head), *rows]))
    if "cost" in stored:
        found = stored["cost"]["result"]
        head = ["64 masks of 64 images", "median s", "times cheaper than an exact decode", "than a fast one"]
        keys = ("times_cheaper_than_exact", "times_cheaper_than_fast")
        rows = [
            [name, f"{row['seconds']:.3f}", *(_range(row[key]) for key in keys)]
            for name, row in found["methods"].items()
        ]
        parts.append(report.markdown([head, ["---"] * len(head), *rows]))
    return "\n".join(parts)


def _cells(split: str, view: str, task: str, row: dict[str, Any]) -> list[str]:
    classes = ", ".join(f"{text} {value:.3f}" for text, value in row["by_class"].items())
    interval = f"{row['accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    return [split, view, task, str(row["regions"]), interval, f"{row['chance']:.3f}", classes]


def _range(values: Sequence[float]) -> str:
    return "{1:.1f} ({0:.1f} to {2:.1f})".format(*values)


def main() -> None:
    """Measure, print, store."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if unknown := set(arguments.sections) - set(SECTIONS):
        raise SystemExit(f"error: unknown sections {sorted(unknown)}; there are {', '.join(SECTIONS)}")
    file = RESULTS / "semantics.json"
    stored: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    about = {**report.provenance(), "model": arguments.model, "checkpoint": arguments.checkpoint}
    if arguments.model == MICRO:
        about["weights_sha256"] = sha256_of(MICRO_FOLDER / "weights.safetensors")
    measures = {"accuracy": accuracy, "masks": poor_masks, "cost": cost, "picture": picture}
    for name in arguments.sections:
        stored[name] = {"about": about, "result": measures[name](arguments)}
        stored = {each: stored[each] for each in SECTIONS if each in stored}
        write_json(file, stored)  # what is measured stays, whatever happens to the next section
    text = tables(stored)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    print(f"stored in {file.parent.name}/{file.name}")


if __name__ == "__main__":
    main()
