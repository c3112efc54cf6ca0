"""What preferences between masks are worth beside masks: stage 1, stage 2, their controls, and wrong ratings.

    python benchmarks/preference.py                              everything, real images; hours, resumable
    python benchmarks/preference.py --datasets DSB --seeds 0     one data set, one seed
    python benchmarks/preference.py --shares 0.1 --rows published    one share, without wrong ratings

Stage 1 tunes SAM's mask decoder on 10, 20 or 50 % of the training images, evenly spread. Stage 2 goes on with ratings
of as many others: each object once, four masks of one box. Each row is a decoder of its own, kept under
runs/preference/; what is there is not trained again. Decoders are trained in the precision that the machine is quick in
("auto"), and measured exactly on the whole test split, by SAM's mask of the box alone. Intervals are 95 % bootstrap
intervals over objects and seeds, of the difference to stage 1 of the same seed. "Wins" is the share of objects whose
mask is better than stage 1's, ties counting half. Stored in benchmarks/results/preference.{json,md}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# Before torch is loaded, see agents/train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import tyro
from held_out import env_id_of, interval
from numpy.typing import NDArray
from trainings import ROOT

from sam_gym._utils.fetching import write_json
from sam_gym._utils.progress import progress_bar, run_with_bar
from sam_gym.data import SegmentationData
from sam_gym.evaluation import encode_images, make_evaluation_env, report, select_cases
from sam_gym.evaluation.bootstrap import bootstrap_runs
from sam_gym.sam.backend import SamBackend, get_backend
from sam_gym.sam.judges import Candidates, Judge, OwnEstimate, TruthJudge, iou_of
from sam_gym.sam.masks import measure
from sam_gym.sam.preference import NothingPreferredError, PreferenceSettings, PreferenceTuner
from sam_gym.sam.prompts import PromptBatch
from sam_gym.sam.tuning import Tuner, TuningSettings

RESULT = ROOT / "benchmarks" / "results" / "preference.json"
CHECKPOINT = "mobile_sam"
SHARES = (0.1, 0.2, 0.5)
NOISE = {"neighbour": (0.3,), "any": (0.1, 0.3, 0.5)}
"""Kind of wrong ratings -> their shares."""
CUTS = np.linspace(-4, 4, 33)
"""Logits at which a mask may be cut."""

BOXES = {"size_error": "cue"}
"""Of both stages: boxes are as wrong as those that are measured with."""

Rows = Literal["stages", "main", "published", "all"]


class Watched(TruthJudge):
    """Rates as `TruthJudge`, and notes how far the IoU of candidates is apart."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spread: list[float] = []

    def rate(self, candidates: Candidates) -> NDArray[np.float64]:
        """See `Judge.rate`."""
        iou = iou_of(candidates)
        self.spread.append(float(np.ptp(iou)))
        return super().rate(candidates)


@dataclass(frozen=True)
class Arguments:
    """Tune decoders by masks and by preferences, and compare them."""

    datasets: tuple[str, ...] = ("ISBI", "VNCMitochondria", "DSB", "WBC")
    """Second part of the environments' ids."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of trainings."""
    shares: tuple[float, ...] = SHARES
    """Labelled shares of the training images."""
    rows: Rows = "all"
    """Of the first share; of others, both stages and a tuned threshold. stages: no more than these; main: more
    controls; published: ratings and candidates as published, too; all: wrong ratings, too."""
    steps: int = 150
    """Of stage 1; stage 2 has its own."""
    folder: Path = ROOT / "runs" / "preference"
    """Where decoders and their IoU are kept."""
    data: str = "real"
    """real, or synthetic for a look at how it works."""
    checkpoint: str = CHECKPOINT
    """What to begin with."""


class Believed(SegmentationData):
    """Images whose masks are believed to be something else than their truths."""

    believed: Callable[[int, int], NDArray[np.bool_]]

    def mask(self, image: int | str, object_id: int) -> NDArray[np.bool_]:
        """What is believed."""
        return self.believed(self.image_index(image), object_id)


def spread_over(which: Sequence[int], n: int) -> list[int]:
    """At most `n` of them, evenly spread."""
    return [which[int((2 * i + 1) * len(which) / (2 * n))] for i in range(min(n, len(which)))]


def images_of(data: SegmentationData, which: Sequence[int], kind: type[SegmentationData] = SegmentationData) -> Any:
    """Some images of a split."""
    columns = ([f(i) for i in which] for f in (data.image_ids.__getitem__, data.image, data.labels))
    limits = {"min_area": data.min_area, "max_area": data.max_area}
    return kind(data.name, data.split, data.source, *columns, **limits)


class Study:
    """One data set and one seed.

    Args:
        dataset: Second part of the environment's id.
        seed: Of trainings.
        arguments: Of the command.
    """

    def __init__(self, dataset: str, seed: int, arguments: Arguments) -> None:
        self.seed, self.arguments = seed, arguments
        self.folder = arguments.folder / f"{dataset}-seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.counts: dict[str, dict[str, float]] = {}
        how = {"data": arguments.data, "precision": "exact", "checkpoint": arguments.checkpoint}
        env_id = env_id_of(dataset)
        self.train = make_evaluation_env(env_id, "train", 1, **how).data
        env = make_evaluation_env(env_id, "test", 1, **how)
        self.test, self.cases = env.data, select_cases(env, None)
        encode_images(env.backend, [self.train, self.test])

    def backend(self, checkpoint: str, precision: str = "exact") -> SamBackend:
        """Of a decoder; SAM's encoder, and so the embeddings, are the same for all."""
        return get_backend(checkpoint, precision=precision)

    def trained(self, name: str, make: Callable[[Path], Tuner]) -> Path:
        """A decoder's file; trained if it is not there, and taken up where it was interrupted."""
        file = self.folder / f"{name}.safetensors"
        if not file.is_file():
            state = file.with_suffix(".state")
            tuner = make(state)
            run_with_bar(tuner, name)
            tuner.save(file)
            state.unlink(missing_ok=True)
        return file

    def stage1(self, name: str, data: SegmentationData, checkpoint: str) -> Path:
        """A decoder tuned on masks."""
        settings = TuningSettings(
            method="decoder", steps=self.arguments.steps, seed=self.seed, learning_rate=1e-4, **BOXES
        )
        return self.trained(
            name, lambda state: Tuner(checkpoint, data, settings, self.backend(checkpoint, "auto"), state)
        )

    def stage2(
        self, name: str, data: SegmentationData, labelled: SegmentationData, judge: Judge, checkpoint: str, **more: Any
    ) -> Path:
        """A decoder tuned on ratings; stage 1's, where all candidates are rated alike."""
        settings = PreferenceSettings(seed=self.seed, **BOXES, **more)
        backend = self.backend(checkpoint, "auto")
        try:
            file = self.trained(
                name, lambda state: PreferenceTuner(checkpoint, data, settings, backend, judge, labelled, state)
            )
        except NothingPreferredError as error:
            print(f"{name}: {error}. It is stage 1's decoder, then")
            return Path(checkpoint)
        if isinstance(judge, Watched) and judge.spread:
            write_json(self.folder / f"spread-{name}.json", {"spread": float(np.mean(judge.spread))})
        return file

    def spread(self, name: str) -> float:
        """Mean difference of the best and the worst candidate's IoU, of ratings that a decoder learned from."""
        return float(json.loads((self.folder / f"spread-{name}.json").read_text(encoding="utf-8"))["spread"])

    def iou(self, name: str, checkpoint: str, cut: float = 0.0) -> NDArray[np.float64]:
        """(M,) IoU on the test split of a decoder's masks of the boxes, cut at a logit."""
        file = self.folder / f"iou-{name}.json"
        if not file.is_file():
            boxes = [(case.image, case.object_id, case.cue) for case in self.cases]
            write_json(file, {"iou": _iou(self.backend(checkpoint), self.test, boxes, [cut], name)[:, 0].tolist()})
        return np.array(json.loads(file.read_text(encoding="utf-8"))["iou"])

    def best_cut(self, checkpoint: str, data: SegmentationData) -> float:
        """The logit at which masks of labelled objects are best cut."""
        objects = data.objects
        boxes = list(zip(objects.image_index.tolist(), objects.object_id.tolist(), objects.box.tolist(), strict=True))
        some = [boxes[i] for i in np.linspace(0, len(boxes) - 1, min(200, len(boxes))).round().astype(int)]
        return float(CUTS[_iou(self.backend(checkpoint), data, some, CUTS.tolist(), "threshold").mean(axis=0).argmax()])

    def rows(self) -> dict[str, NDArray[np.float64]]:
        """Row -> IoU (M,), and notes what was learned from in `counts`."""
        base = self.arguments.checkpoint
        found = {"box only": self.iou("box-only", base)}
        images = len(self.train.image_ids)
        for share in self.arguments.shares:
            n = max(1, round(share * images))
            first, rest = spread_over(range(images), n), spread_over(range(images), 2 * n)
            rest = [i for i in rest if i not in first][:n]
            labelled, rated = images_of(self.train, first), images_of(self.train, rest)
            percent, tag = f"{100 * share:g} %", f"{100 * share:g}"
            self.counts[percent] = {
                "images": n, "labelled": len(labelled.objects), "rated": len(rated.objects),
            }  # fmt: skip
            one = str(self.stage1(f"stage1-{tag}", labelled, base))
            found[f"{percent}: stage 1"] = self.iou(f"stage1-{tag}", one)
            files = {
                f"{percent}: + preferences": self.stage2(f"prefer-{tag}", rated, labelled, Watched(exact=True), one)
            }
            controls = self.arguments.rows if share == self.arguments.shares[0] else "stages"
            if controls != "stages":
                both = images_of(self.train, [*first, *rest])
                files |= {
                    f"{percent}: + SAM's own estimate": self.stage2(f"own-{tag}", rated, labelled, OwnEstimate(), one),
                    f"{percent}: + its own masks": self.stage1(f"self-{tag}", self._believed(rest, one), one),
                    f"{percent}: + as many labelled": self.stage1(f"both-{tag}", both, base),
                }
            if controls in ("published", "all"):
                files[f"{percent}: + preferences, grades as published"] = self.stage2(
                    f"grades-{tag}", rated, labelled, TruthJudge(), one
                )
                files[f"{percent}: + preferences, thresholds as published"] = self.stage2(
                    f"thresholds-{tag}", rated, labelled, Watched(exact=True), one, candidates="thresholds"
                )
            if controls == "all":
                for error, shares in NOISE.items():
                    for wrong in shares:
                        judge = TruthJudge(wrong, error, seed=self.seed)
                        name = f"{percent}: + preferences, grades, {100 * wrong:g} % wrong ({error})"
                        files[name] = self.stage2(f"{error}{100 * wrong:g}-{tag}", rated, labelled, judge, one)
            for name, file in files.items():
                found[name] = self.iou(file.stem, str(file))
            self.counts[percent]["spread"] = self.spread(f"prefer-{tag}")
            known = (self.folder / f"iou-cut-{tag}.json").is_file()
            cut = 0.0 if known else self.best_cut(one, labelled)
            found[f"{percent}: stage 1, threshold tuned"] = self.iou(f"cut-{tag}", one, cut)
        return found

    def _believed(self, which: Sequence[int], checkpoint: str) -> Believed:
        """Images whose masks are those of a decoder for tight boxes."""
        data: Believed = images_of(self.train, which, Believed)
        backend, boxes = self.backend(checkpoint), data.objects.box
        kept: dict[tuple[int, int], NDArray[np.bool_]] = {}

        def believed(image: int, object_id: int) -> NDArray[np.bool_]:
            if (image, object_id) not in kept:
                box = boxes[data.find(image, object_id)]
                embedding = backend.encode([data.image(image)])
                masks = backend.decode(embedding, PromptBatch.from_lists(boxes=[box]), full=True)
                assert masks.full is not None, "they were asked for"
                kept[image, object_id] = masks.full[0][0].cpu().numpy()
            return kept[image, object_id]

        data.believed = believed
        return data


def _iou(backend: SamBackend, data: SegmentationData, boxes: list, cuts: list[float], name: str) -> NDArray[np.float64]:
    """(M, cuts) IoU of masks of boxes (image, object, box), cut at each logit."""
    found = np.zeros((len(boxes), len(cuts)))
    with progress_bar(f"measuring {name}", len(boxes), "object") as bar:
        for start in range(0, len(boxes), 16):
            some = boxes[start : start + 16]
            embeddings = backend.encode([data.image(image) for image, _, _ in some])
            masks = backend.decode(embeddings, PromptBatch.from_lists(boxes=[box for _, _, box in some]))
            for i, (image, object_id, _) in enumerate(some):
                full = backend.upscale(masks.logits[i, 0], embeddings[i])
                truth = torch.as_tensor(data.mask(image, object_id), device=full.device)
                masks_cut = torch.stack([full > cut for cut in cuts])
                found[start + i] = measure(masks_cut[None], truth[None], boxes=False).iou[0].cpu().numpy()
            bar.update(len(some))
    return found


def tables(stored: dict[str, Any]) -> str:
    """What is stored, as Markdown."""
    head = ["dataset", "row", "seeds", "IoU", "less stage 1 (95 %)", "wins"]
    rows = [head, ["---"] * len(head)]
    for dataset, found in stored.items():
        for name, row in found["rows"].items():
            less = interval(row["less"]) if "less" in row else ""
            wins = f"{100 * row['wins']:.0f} %" if "wins" in row else ""
            rows.append([dataset, name, str(found["seeds"]), f"{row['iou']:.3f}", less, wins])
    learned = [["dataset", "share", "images", "labelled objects", "rated objects", "spread of candidates' IoU"]]
    learned.append(["---"] * len(learned[0]))
    for dataset, found in stored.items():
        for share, counts in found["counts"].items():
            numbers = [f"{counts[name]:.0f}" for name in ("images", "labelled", "rated")]
            learned.append([dataset, share, *numbers, f"{counts['spread']:.3f}"])
    return report.markdown(rows) + "\n" + report.markdown(learned)


def main() -> None:
    """Train, measure, store."""
    arguments = tyro.cli(Arguments, description=__doc__)
    stored = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    where_from = report.provenance()  # before anything is written, or the commit would count as changed
    for dataset in arguments.datasets:
        studies = [Study(dataset, seed, arguments) for seed in arguments.seeds]
        runs = [study.rows() for study in studies]
        rows: dict[str, Any] = {}
        for name in runs[0]:
            iou = np.stack([run[name] for run in runs])
            rows[name] = {"iou": float(iou.mean())}
            stage1 = f"{name.partition(':')[0]}: stage 1"
            if stage1 in runs[0] and stage1 != name:
                before = np.stack([run[stage1] for run in runs])
                less = bootstrap_runs(iou - before)  # a decoder of stage 2 comes from the one of stage 1 of its seed
                rows[name]["less"] = [less.mean, less.low, less.high]
                rows[name]["wins"] = float(np.mean((iou > before) + 0.5 * (iou == before)))
        counts = {
            share: {name: float(np.mean([one.counts[share][name] for one in studies])) for name in found}
            for share, found in studies[0].counts.items()
        }
        stored[dataset] = {
            "seeds": len(runs), "steps": arguments.steps, "counts": counts, "rows": rows, **where_from,
        }  # fmt: skip
        if arguments.data == "real":
            write_json(RESULT, stored)
            RESULT.with_suffix(".md").write_text(tables(stored), encoding="utf-8")
    print(tables(stored))


if __name__ == "__main__":
    main()
