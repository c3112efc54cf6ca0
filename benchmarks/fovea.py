"""The foveated decoder: how near its masks are to those of the whole decode, and what agents trained with it lose.

    python benchmarks/fovea.py                          everything; an hour on two cores, the agents' trainings included
    python benchmarks/fovea.py --sections masks         the masks alone; ten minutes
    python benchmarks/fovea.py --sections variants      other windows and blocks on ISBI; ten minutes
    python benchmarks/fovea.py --sections picture       docs/pictures/fovea.png: a window and its blocks

"masks" follows the same prompts with both decoders on validation objects of six datasets: a noisy box, then five
clicks, each fed its own last mask. Half of the objects get the oracle's clicks on the whole decode's masks, half random
ones. "variants" does so on ISBI with more or fewer blocks, with larger or coarser windows, and with the mean of
positional codes in place of the code of the middle. "agents" trains one agent per dataset with the default recipe
(agents/train_ppo.py, under runs/fovea/), which is foveated, and evaluates it on the held-out split with both. Stored in
benchmarks/results/fovea.json and .md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# Before torch is loaded, see agents/train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy import ndimage
from trainings import ROOT, finished

from sam_gym._utils.boxes import noisy_box
from sam_gym._utils.fetching import embeddings_dir, write_json
from sam_gym._utils.progress import progress_bar
from sam_gym.data import load_data
from sam_gym.envs.episode import in_view, view_of
from sam_gym.envs.prompt import PromptSettings
from sam_gym.evaluation import encode_images, evaluate_stored, make_evaluation_env, report
from sam_gym.evaluation.bootstrap import bootstrap_mean
from sam_gym.registration import OBJECTS
from sam_gym.sam import ImageEmbedding, PromptBatch, SamBackend, fovea
from sam_gym.sam.decoder import BatchedDecoder
from sam_gym.sam.fovea import Fovea
from sam_gym.sb3 import ModelPrompter, load_model

RESULTS = ROOT / "benchmarks" / "results"
DATASETS = ("ISBI", "VNCCells", "VNCMitochondria", "DSB", "WBC", "WBCNucleus")
SMALLEST = {"DSB": 50}
"""Smallest objects in px, where it is not the environments' default."""
CLICKS = 5
AGENTS = ("ISBI", "VNCMitochondria", "DSB")
HELD_OUT = 200
"""So many held-out objects at most, evenly spread."""
TOGETHER = 16
"""Objects that are followed side by side."""


@dataclass(frozen=True)
class Arguments:
    """Compare the foveated decoder with the whole one."""

    sections: tuple[Literal["masks", "variants", "agents", "picture"], ...] = (
        "masks",
        "variants",
        "agents",
        "picture",
    )
    """What to do."""
    objects: int = 96
    """Validation objects of each dataset, evenly spread; all where there are fewer."""
    folder: Path = ROOT / "runs" / "fovea"
    """Where agents are trained; what is there is not done again."""
    seed: int = 0
    """Of boxes and clicks."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of trainings."""


# --------------------------------------------------------------------------------------------------------- masks


@dataclass
class Case:
    """One object: its image, truth, noisy box, and whether the oracle clicks."""

    image: NDArray[np.uint8]
    truth: torch.Tensor
    box: NDArray[np.float32]
    oracle: bool

    def click(self, mask: torch.Tensor, rng: np.random.Generator) -> tuple[NDArray[np.float64], int]:
        """The deepest place of the error for the oracle, else somewhere in the view, labelled at random."""
        height, width = self.truth.shape
        wrong = (mask ^ self.truth).numpy()
        if self.oracle and wrong.any():
            depth = ndimage.distance_transform_edt(np.pad(wrong, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            return np.array([x, y], float), int(self.truth[y, x])
        place = in_view(view_of(self.box, PromptSettings.view_scale), rng.random(2))[..., 0, :].ravel()
        return np.clip(place, 0, (width - 1, height - 1)), int(rng.integers(2))


def cases_of(dataset: str, objects: int, seed: int) -> list[Case]:
    """Validation objects, evenly spread."""
    smallest = SMALLEST.get(dataset, PromptSettings.min_area)
    data = load_data(OBJECTS[dataset], "val", "real", smallest, PromptSettings.max_area)
    rng = np.random.default_rng(seed)
    chosen = np.linspace(0, len(data.objects) - 1, min(objects, len(data.objects))).round().astype(int)
    cases = []
    for place, row in enumerate(chosen):
        index = int(data.objects.image_index[row])
        image = data.image(index)
        truth = torch.as_tensor(data.mask(index, int(data.objects.object_id[row])))
        cases.append(Case(image, truth, noisy_box(data.objects.box[row], 0.2, image.shape[:2], rng), place % 2 == 0))
    return cases


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """IoU of two masks; two empty ones are equal."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0


def follow(backend: SamBackend, cases: list[Case], rng: np.random.Generator) -> NDArray[np.float64]:
    """(3, objects, clicks + 1): IoU of both masks, then of the whole decode and of the foveated one with the truth."""
    embeddings = backend.encode([case.image for case in cases])
    views = [view_of(case.box, PromptSettings.view_scale) for case in cases]
    windows = [backend.window(*pair) for pair in zip(embeddings, views, strict=True)]
    points: list[list[Any]] = [[] for _ in cases]
    labels: list[list[int]] = [[] for _ in cases]
    before: list[Any] = [None] * len(cases)
    near: list[Any] = [None] * len(cases)
    found = np.zeros((3, len(cases), CLICKS + 1))
    for n in range(CLICKS + 1):
        given: Any = {"boxes": [case.box for case in cases], "points": points, "labels": labels}
        whole = backend.decode(embeddings, PromptBatch.from_lists(mask_logits=before, **given), full=True)
        part = backend.decode_windows(windows, PromptBatch.from_lists(**given), near, full=True)
        before, near = list(whole.logits[:, 0]), [one[0] for one in part.logits]
        assert whole.full is not None, "they were asked for"
        assert part.full is not None, "they were asked for"
        for i, case in enumerate(cases):
            masks = whole.full[i][0], part.full[i][0]
            found[:, i, n] = overlap(*masks), *(overlap(mask, case.truth) for mask in masks)
            place, label = case.click(masks[0], rng)
            points[i].append(place)
            labels[i].append(label)
    return found


def masks(arguments: Arguments) -> dict[str, Any]:
    """Both decoders on all datasets."""
    backend = SamBackend("mobile_sam", "cpu", "exact", disk_cache=embeddings_dir())
    return {dataset: compared(backend, dataset, arguments, dataset) for dataset in DATASETS}


def compared(backend: SamBackend, dataset: str, arguments: Arguments, shown: str) -> dict[str, Any]:
    """Both decoders on one dataset."""
    cases = cases_of(dataset, arguments.objects, arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    parts = []
    with progress_bar(shown, len(cases), "object") as bar:
        for start in range(0, len(cases), TOGETHER):
            parts.append(follow(backend, cases[start : start + TOGETHER], rng))
            bar.update(len(cases[start : start + TOGETHER]))
    alike, whole, part = np.concatenate(parts, axis=1)
    windows = [backend.window(backend.encode([case.image])[0], view_of(case.box, PromptSettings.view_scale))
               for case in cases]  # fmt: skip
    sides = [window.side for window in windows]
    return {
        "objects": len(cases),
        "sides": {int(side): sides.count(side) for side in sorted(set(sides))},
        "cells": float(np.mean([len(window.cells) for window in windows])),
        "alike": alike.mean(axis=0).tolist(),
        "whole": whole.mean(axis=0).tolist(),
        "foveated": part.mean(axis=0).tolist(),
        "alike_all": float(alike.mean()),
        "alike_low": float(np.quantile(alike, 0.05)),
        "difference": float((part - whole).mean()),
        "correlation": float(np.corrcoef(whole.ravel(), part.ravel())[0, 1]),
    }


class MeanCodes(Fovea):
    """Blocks whose positional code is the mean of their cells' codes."""

    def _cells(
        self, embedding: ImageEmbedding, near: tuple[slice, slice], pool: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cells, positions, log_counts = super()._cells(embedding, near, pool)
        blocks = fovea.BLOCKS**2
        outside = torch.ones(*self._block.shape, 1)
        outside[near] = 0
        if outside.any():
            sums = torch.zeros(blocks, positions.shape[1] + 1)
            codes = torch.cat([self._codes, torch.ones_like(outside)], dim=-1) * outside
            sums.index_add_(0, self._block.flatten(), codes.flatten(0, 1))
            positions[-blocks:] = sums[:, :-1] / sums[:, -1:].clamp(min=1)
        return cells, positions, log_counts


VARIANTS: dict[str, tuple[type[Fovea], dict[str, Any]]] = {
    "as it is": (Fovea, {}),
    "8 x 8 blocks": (Fovea, {"BLOCKS": 8}),
    "16 x 16 blocks": (Fovea, {"BLOCKS": 16}),
    "windows of 16 cells at least": (Fovea, {"SIDES": tuple(side for side in fovea.SIDES if side >= 16)}),
    "windows above 16 cells coarse": (Fovea, {"LARGEST_FINE": 16, "SIDES": (*range(6, 17), *range(18, 58, 2))}),
    "mean of positional codes": (MeanCodes, {}),
    "windows of 16 to 60 cells, all fine, 8 x 8 blocks, mean of codes": (
        MeanCodes,
        {"SIDES": tuple(range(16, 64, 4)), "BLOCKS": 8, "LARGEST_FINE": 64},
    ),
}
"""Name -> class, and constants of `sam_gym.sam.fovea`."""


def variants(arguments: Arguments) -> dict[str, Any]:
    """Variants of the fovea on ISBI."""
    backend = SamBackend("mobile_sam", "cpu", "exact", disk_cache=embeddings_dir())
    rows = {}
    for name, (kind, constants) in VARIANTS.items():
        usual = {constant: getattr(fovea, constant) for constant in constants}
        for constant, value in constants.items():
            setattr(fovea, constant, value)
        try:
            assert isinstance(backend._decoder, BatchedDecoder), "it is exact"
            backend._fovea = kind(backend._decoder, backend.sam.image_encoder.img_size)
            rows[name] = compared(backend, "ISBI", arguments, name)
        finally:
            for constant, value in usual.items():
                setattr(fovea, constant, value)
    return rows


# -------------------------------------------------------------------------------------------------------- agents


def agents(arguments: Arguments) -> dict[str, Any]:
    """Agents that were trained with the fovea, on the held-out split: foveated, and full and exact."""
    finals: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    firsts: dict[str, NDArray[np.float64]] = {}
    for seed in arguments.seeds:
        for dataset in AGENTS:
            env_id = f"SamPrompt-{dataset}-v0"
            run = arguments.folder / f"{dataset}-seed{seed}"
            finished(run, ["--env", env_id, "--data", "real", "--seed", str(seed), "--test-objects", "16"], True)
            for attention in ("foveated", "full"):
                env = make_evaluation_env(env_id, "test", data="real", attention=attention, precision="exact")
                encode_images(env.backend, [env.data])
                agent = ModelPrompter(load_model(run / "model.zip", env.single_action_space))
                name = f"{dataset}, seed {seed}, {attention}"
                record, _ = evaluate_stored(agent, name, env, run / f"{attention}.json", max_objects=HELD_OUT)
                finals.setdefault(dataset, {}).setdefault(attention, []).append(record.iou[:, -1])
                firsts[dataset] = record.iou[:, 0]
    rows = {}
    for dataset, found in finals.items():
        means = {name: np.mean(values, axis=0) for name, values in found.items()}  # over seeds, per object
        lost = bootstrap_mean(means["full"] - means["foveated"])
        gain = bootstrap_mean(means["full"] - firsts[dataset])
        rows[dataset] = {
            "objects": len(firsts[dataset]),
            "seeds": len(found["full"]),
            "final": {name: float(values.mean()) for name, values in means.items()},
            "difference": [lost.mean, lost.low, lost.high],
            "gain": [gain.mean, gain.low, gain.high],
        }
    return rows


# ------------------------------------------------------------------------------------------------------- picture


def picture() -> None:
    """A generated image, a view, its window of cells and the blocks around it."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    data = load_data("synthetic-em", "val", "synthetic")
    backend = SamBackend("mobile_sam", "cpu", disk_cache=embeddings_dir())
    image = data.image(0)
    height, width = image.shape[:2]
    cell = max(height, width) / 64
    boxes = data.objects.box[data.objects.image_index == 0]
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).max(axis=1) < 7 * cell]  # one of those that most objects are like
    middle = boxes.reshape(-1, 2, 2).mean(axis=1) - (width / 2, height / 2)
    view = view_of(boxes[np.abs(middle).sum(axis=1).argmin()], PromptSettings.view_scale)
    window = backend.window(backend.encode([image])[0], view)
    figure, axes = pyplot.subplots(figsize=(4.2, 4.2), dpi=110)
    axes.imshow(image)
    edges = np.searchsorted(np.arange(64) * fovea.BLOCKS // 64, np.arange(fovea.BLOCKS + 1)) * cell
    axes.vlines(edges, 0, height, color="white", lw=0.7)
    axes.hlines(edges, 0, width, color="white", lw=0.7)
    corner, side = (window.column * cell, window.row * cell), window.side * cell
    axes.add_patch(Rectangle(corner, side, side, color="#1f4e79", alpha=0.45, lw=0))
    fine = np.arange(window.side + 1) * cell
    axes.vlines(corner[0] + fine, corner[1], corner[1] + side, color="white", lw=0.4)
    axes.hlines(corner[1] + fine, corner[0], corner[0] + side, color="white", lw=0.4)
    axes.add_patch(Rectangle(view[:2], view[2], view[2], fill=False, edgecolor="#ffd24d", lw=1.6))
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    figure.tight_layout(pad=0.2)
    figure.savefig(ROOT / "docs" / "pictures" / "fovea.png")


# -------------------------------------------------------------------------------------------------------- tables


def tables(stored: dict[str, Any]) -> Iterable[list[list[str]]]:
    """Tables of what is stored, as text."""
    head = ["dataset", "objects", "IoU of both masks", "5 % quantile", "IoU, whole decode", "IoU, foveated",
            "difference", "correlation", "sides of windows in cells: objects"]  # fmt: skip
    if "masks" in stored:
        rows = stored["masks"]["rows"]
        yield [head, ["---"] * len(head)] + [
            [name, str(row["objects"]), f"{row['alike_all']:.3f}", f"{row['alike_low']:.3f}",
             f"{np.mean(row['whole']):.3f}", f"{np.mean(row['foveated']):.3f}", f"{row['difference']:+.3f}",
             f"{row['correlation']:.3f}", ", ".join(f"{side}: {count}" for side, count in row["sides"].items())]
            for name, row in rows.items()
        ]  # fmt: skip
        clicks = [str(n) for n in range(CLICKS + 1)]
        for title, key in (("IoU of both masks after so many clicks", "alike"),):
            yield [[title, *clicks], ["---"] * (len(clicks) + 1)] + [
                [name, *(f"{value:.3f}" for value in row[key])] for name, row in rows.items()
            ]
        yield [["IoU with the truth, whole / foveated", *clicks], ["---"] * (len(clicks) + 1)] + [
            [name, *(f"{a:.3f} / {b:.3f}" for a, b in zip(row["whole"], row["foveated"], strict=True))]
            for name, row in rows.items()
        ]
    if "variants" in stored:
        head = ["variant, ISBI", "cells of a decode", "IoU of both masks", "difference", "correlation"]
        yield [head, ["---"] * len(head)] + [
            [name, f"{row['cells']:.0f}", f"{row['alike_all']:.3f}", f"{row['difference']:+.3f}",
             f"{row['correlation']:.3f}"]
            for name, row in stored["variants"]["rows"].items()
        ]  # fmt: skip
    if "agents" in stored:
        head = ["agents of", "seeds", "held-out objects", "IoU, foveated", "IoU, full and exact", "difference (95 %)",
                "gain, full and exact (95 %)"]  # fmt: skip
        yield [head, ["---"] * len(head)] + [
            [name, str(row["seeds"]), str(row["objects"]), f"{row['final']['foveated']:.3f}",
             f"{row['final']['full']:.3f}", *("{:+.3f} ({:+.3f} to {:+.3f})".format(*row[key])
             for key in ("difference", "gain"))]
            for name, row in stored["agents"]["rows"].items()
        ]  # fmt: skip


def main() -> None:
    """Measure, print, store."""
    arguments = tyro.cli(Arguments, description=__doc__)
    file = RESULTS / "fovea.json"
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name, section in (("masks", masks), ("variants", variants), ("agents", agents)):
        if name in arguments.sections:
            stored[name] = {"about": report.provenance(), "rows": section(arguments)}
            write_json(file, {each: stored[each] for each in ("masks", "variants", "agents") if each in stored})
    if "picture" in arguments.sections:
        picture()
    text = "\n".join(report.markdown(table) for table in tables(stored))
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
