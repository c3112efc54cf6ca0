"""How good boxes are that nobody drew: six ways to propose them from a text, on held-out images.

    python benchmarks/proposals.py                       all; some twenty minutes on two cores, most of it for "sam"
    python benchmarks/proposals.py --ways otsu shades    some ways; the others keep their stored rows

Every object of a test split counts once: the IoU of its tight box with the proposal that fits it best. Recall is the
share of objects with .5 or more, precision the share of proposals that fit an object so well. Intervals are 95 %
bootstrap intervals over objects. The CLIP is clip-micro, offline. Stored in benchmarks/results/proposals.{json,md}.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro
from trainings import ROOT

from sam_gym._utils.fetching import write_json
from sam_gym._utils.progress import progress_bar
from sam_gym.data import DATASETS, load_data
from sam_gym.evaluation import report
from sam_gym.evaluation.bootstrap import bootstrap_mean
from sam_gym.sam.backend import get_backend
from sam_gym.semantics import get_scorer
from sam_gym.semantics.proposals import WAYS, ProposalSettings, Proposer, match

RESULT = ROOT / "benchmarks" / "results" / "proposals.json"
DATA = {"WBC": "wbc-cell", "WBCNucleus": "wbc-nucleus", "DSB": "dsb2018-153", "VNCMitochondria": "vnc-mitochondria"}
GOOD = 0.5


@dataclass(frozen=True)
class Arguments:
    """Propose boxes on held-out images, and measure them."""

    datasets: tuple[str, ...] = tuple(DATA)
    """Which."""
    ways: tuple[str, ...] = WAYS
    """How boxes are proposed."""


def measured(dataset: str, way: str) -> dict[str, Any]:
    """One row of the table."""
    data = load_data(DATA[dataset], "test", "real", min_area=50)
    backend = get_backend("mobile_sam", precision="exact")
    text = DATASETS[DATA[dataset]].text
    proposer = Proposer(text, get_scorer("clip-micro"), backend, ProposalSettings(way))
    iou: list[float] = []
    proposed, fitting, started = 0, 0, time.perf_counter()
    with progress_bar(f"{dataset}, {way}", len(data.image_ids), "image") as bar:
        for i in range(len(data.image_ids)):
            found = proposer(data.image(i))
            boxes = data.objects.box[data.objects.image_index == i]
            iou += match(found, boxes).tolist()
            proposed += len(found)
            fitting += sum(match([one], boxes).max(initial=0) >= GOOD for one in found)
            bar.update()
    seconds = (time.perf_counter() - started) / len(data.image_ids)
    columns = {"iou": np.array(iou), "recall": np.array(iou) >= GOOD}
    means = {name: bootstrap_mean(column.astype(float)) for name, column in columns.items()}
    return {
        "text": text, "images": len(data.image_ids), "objects": len(iou), "proposals": proposed,
        "precision": fitting / max(1, proposed), "seconds": seconds,
        **{name: [mean.mean, mean.low, mean.high] for name, mean in means.items()}, **report.provenance(),
    }  # fmt: skip


def tables(stored: dict[str, Any]) -> str:
    """What is stored, as Markdown."""
    head = ["dataset", "text", "objects", "way", "proposals", "IoU of boxes (95 %)", "recall (95 %)", "precision"]
    rows = [head, ["---"] * len(head)]
    for dataset, found in stored.items():
        for way in (way for way in WAYS if way in found):
            row = found[way]
            spans = [f"{a:.3f} ({b:.3f} to {c:.3f})" for a, b, c in (row["iou"], row["recall"])]
            counts = [str(row["objects"]), way, str(row["proposals"])]
            rows.append([dataset, row["text"], *counts, *spans, f"{row['precision']:.3f}"])
    return report.markdown(rows)


def main() -> None:
    """Propose, measure, store."""
    arguments = tyro.cli(Arguments, description=__doc__)
    stored = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for dataset in arguments.datasets:
        for way in arguments.ways:
            stored.setdefault(dataset, {})[way] = measured(dataset, way)
            write_json(RESULT, stored)
            RESULT.with_suffix(".md").write_text(tables(stored), encoding="utf-8")
    print(tables(stored))


if __name__ == "__main__":
    main()
