"""What reports are worth: by who chose the regions (SamReport), and by what a writer sees (generated blood smears).

    python benchmarks/reports.py selection                              scripted prompters, generated images, MobileSAM
    python benchmarks/reports.py selection --envs SamReport-DSB-v1      on real images that you have
    python benchmarks/reports.py writers                                trains every writer: hours on a laptop
    python benchmarks/reports.py writers --examples 60 --steps 300 --tests 20 --seeds 0      a short one

"selection" plays all windows of the test split and notes F1 after each click; whoever reports early keeps what it has.
"writers" trains writers of all kinds on the same smears, and compares them with the report that is true most often and
with a rule that describes the same masks by the grammar, whose types come from the nearest mean feature. Stored in
benchmarks/results/reports-selection.{json,md} and reports-writers.{json,md}. Trained writers and encoded smears are
kept in runs/reports, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from trainings import ROOT

from sam_gym._utils.fetching import write_json
from sam_gym._utils.progress import progress_bar, run_with_bar
from sam_gym.envs.report import ReportEngine
from sam_gym.evaluation import encode_images, make_evaluation_env, report
from sam_gym.evaluation.bootstrap import bootstrap_mean
from sam_gym.prompters import RandomPrompter, grid, oracle_regions
from sam_gym.reports import Region, Score, describe, write
from sam_gym.reports.examples import MADE, TRUE, TYPES, Examples, load_examples
from sam_gym.reports.train_writer import TrainingSettings, WriterTrainer, look, score_of
from sam_gym.reports.writer import IMAGE, LOOKS, MARKS, TOKENS, Seen, Writer, WriterSettings
from sam_gym.sam.backend import get_backend

RESULTS = ROOT / "benchmarks" / "results"
TOGETHER = 8
"""Episodes that share a decode, and reports that are written together."""


@dataclass(frozen=True)
class Selection:
    """Scripted prompters on the test split of SamReport environments."""

    envs: tuple[str, ...] = ("SamReport-Synthetic-v0", "SamReport-Smears-v0")
    """Environment ids."""
    seed: int = 0
    """Of the random prompter."""
    out: Path = RESULTS / "reports-selection.json"
    """File of the results."""


@dataclass(frozen=True)
class Writers:
    """Writers by what they see, against the commonest facts and against a rule."""

    examples: int = 600
    """Smears to learn of."""
    tests: int = 100
    """Smears to be described, none of which is learned of."""
    steps: int = TrainingSettings.steps
    """Steps of each training."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training of each kind for each."""
    checkpoint: str = "mobile_sam"
    """SAM: a name or a file."""
    folder: Path = ROOT / "runs" / "reports"
    """Where encoded smears and trained writers are kept; one for each SAM."""
    out: Path = RESULTS / "reports-writers.json"
    """File of the results."""


def main() -> None:
    """Parse the arguments, play or train, store."""
    chosen = tyro.cli(
        Annotated[Selection, tyro.conf.subcommand("selection")] | Annotated[Writers, tyro.conf.subcommand("writers")],
        description=__doc__,
    )
    try:
        selection(chosen) if isinstance(chosen, Selection) else writers(chosen)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from there")


# --------------------------------------------------------------------------------------------------------- selection


def selection(arguments: Selection) -> None:
    """F1 after each click, prompter by prompter."""
    stored: dict[str, Any] = {"environments": {}, **report.provenance()}
    head = [["environment", "prompter", "clicks", "F1 after 1", "2", "4", "all", "95 % interval", "grounded F1"]]
    rows = [*head, ["---", "---", *["---:"] * 5, "---", "---:"]]
    for env_id in arguments.envs:
        env = make_evaluation_env(env_id, "test", TOGETHER)
        assert isinstance(env.engine, ReportEngine)
        encode_images(env.backend, [env.data])
        stored["environments"][env_id] = {"data": env.data.hash(), "source": env.data.source, "windows": {}}
        for name, prompter in (("random", RandomPrompter(arguments.seed)), ("grid", grid), ("oracle", oracle_regions)):
            played = play(env, prompter, name)
            f1 = np.array([one["f1"] for one in played])
            interval = bootstrap_mean(f1[:, -1])
            grounded, clicks = (float(np.mean([one[key] for one in played])) for key in ("grounded_f1", "clicks"))
            after = [f"{f1[:, min(k, f1.shape[1] - 1)].mean():.3f}" for k in (1, 2, 4)]
            rows.append(
                [env_id, name, f"{clicks:.1f}", *after, f"{interval.mean:.3f}", f"{interval.low:.3f} to "
                 f"{interval.high:.3f}", f"{grounded:.3f}"]
            )  # fmt: skip
            stored["environments"][env_id]["windows"][name] = played
    write_json(arguments.out, stored)
    arguments.out.with_suffix(".md").write_text(report.markdown(rows), encoding="utf-8")
    print(report.markdown(rows))


def play(env: Any, prompter: Callable, name: str) -> list[dict[str, Any]]:
    """Every window of the split once: F1 after 0, 1, ... clicks, at the end carried on; grounded F1, clicks, kinds."""
    played, windows = [], range(len(env.data.image_ids))
    with progress_bar(name, len(windows), "window") as bar:
        for start in range(0, len(windows), TOGETHER):
            # rows that are left over at the end describe the last window again, and are not counted
            images = [min(start + row, windows[-1]) for row in range(TOGETHER)]
            observations = env.begin_rows({row: {"image": image} for row, image in enumerate(images)})
            curves = [[float(env.quality.f1[row])] for row in range(TOGETHER)]
            while len(going := np.flatnonzero(~env.episodes.terminated)):
                observations, _ = env.step_rows(going, np.asarray(prompter(observations, env))[going])
                for row, curve in enumerate(curves):
                    curve.append(float(env.quality.f1[row]))
            for row in range(min(TOGETHER, len(windows) - start)):
                curve = np.array(curves[row] + curves[row][-1:] * env.settings.max_prompts)
                score: Score = env.engine.score(row)
                played.append(
                    {
                        "image": env.data.image_ids[images[row]],
                        "f1": curve[: env.settings.max_prompts + 1].round(6).tolist(),
                        "grounded_f1": round(score.total.grounded_f1, 6),
                        "clicks": int(env.episodes.prompts[row]),
                        "kinds": {kind: asdict(tally) for kind, tally in score.kinds.items()},
                    }
                )
                bar.update()
    return played


# ----------------------------------------------------------------------------------------------------------- writers


def writers(arguments: Writers) -> None:
    """Train each kind of writer with each seed, and let all describe the same smears."""
    backend = get_backend(arguments.checkpoint, "cpu")
    smears = arguments.folder / "examples"
    known = load_examples("train", arguments.examples, backend, smears)
    tests = load_examples("test", arguments.tests, backend, smears)
    means = mean_features(known)
    scores: dict[str, list[list[Score]]] = {
        "commonest facts": [score_of([commonest(known)] * len(tests), tests)],
        "rule, true masks": [score_of(ruled(tests, TRUE, means), tests)],
        "rule, SAM's masks": [score_of(ruled(tests, MADE, means), tests)],
    }
    for looks in LOOKS:
        for seed in arguments.seeds:
            writer = trained(arguments, looks, seed, known, backend.embedding_channels)
            for row, seen in views(writer, tests).items():
                scores.setdefault(row, []).append(score_of(all_written(writer, seen), tests))
    store(arguments, scores)


def trained(arguments: Writers, looks: str, seed: int, known: Examples, channels: int) -> Writer:
    """A writer, from its file if it was trained before."""
    name = f"{looks}-{arguments.examples}-{arguments.steps}-seed{seed}"
    file = arguments.folder / f"{name}.safetensors"
    if not file.is_file():
        torch.manual_seed(seed)
        writer = Writer(WriterSettings(looks=looks, channels=channels))
        settings = TrainingSettings(steps=arguments.steps, seed=seed)
        run_with_bar(WriterTrainer(writer, known, settings, file.with_suffix(".state")), name)
        writer.save(file)
        file.with_suffix(".state").unlink(missing_ok=True)
    return Writer.load(file)


def views(writer: Writer, tests: Examples) -> Mapping[str, Seen]:
    """Name of a row -> what the writer sees there."""
    rows, looks = np.arange(len(tests)), writer.settings.looks
    if looks in (IMAGE, MARKS):
        label = "image alone" if looks == IMAGE else "Set-of-Mark, SAM's masks"
        return {label: look(tests, rows, MADE, marked=looks == MARKS)}
    kind = "tokens" if looks == TOKENS else "tokens without spatial ones"
    seen = {"true masks": look(tests, rows, TRUE), "SAM's masks": look(tests, rows, MADE)}
    other = look(tests, np.roll(rows, 1), MADE)
    seen["masks of another smear"] = Seen(seen["SAM's masks"].image, other.features, other.maps, other.there)
    return {f"{kind}, {name}": one for name, one in seen.items()}


def all_written(writer: Writer, seen: Seen) -> list[str]:
    """A report for each of many images."""
    texts: list[str] = []
    for start in range(0, len(seen.image), TOGETHER):
        texts += writer.write(Seen(*(array[start : start + TOGETHER] for array in vars(seen).values())))
    return texts


def commonest(known: Examples) -> str:
    """What is true of more than half of the smears, as a report."""
    counts = Counter(fact for row in range(len(known)) for fact in known.facts_of(row))
    return write(fact for fact, count in counts.items() if count > len(known) / 2)


def mean_features(known: Examples) -> NDArray[np.float32]:
    """(types, C) mean feature under the true masks of each type."""
    features = known.features[:, TRUE].astype(np.float32)
    return np.stack([features[known.types == kind].mean(axis=0) for kind in range(len(TYPES))])


def ruled(tests: Examples, whose: int, means: NDArray[np.float32]) -> list[str]:
    """The exact grammar on masks, whose types are those of the nearest mean feature."""
    texts = []
    for row in range(len(tests)):
        masks = tests.masks_of(row, whose)
        features = tests.features[row, whose][: len(masks)].astype(np.float32)
        nearest = np.square(features[:, None] - means).sum(axis=2).argmin(axis=1)
        regions = [Region.of(TYPES[kind], mask) for kind, mask in zip(nearest, masks, strict=True) if mask.any()]
        texts.append(write(statement.fact for statement in describe(regions, TYPES)))
    return texts


def store(arguments: Writers, scores: Mapping[str, list[list[Score]]]) -> None:
    """A table of rows and one of kinds, and every smear's F1."""
    rows = [["who writes", "trainings", "F1", "95 % interval", "precision", "recall"]]
    rows.append(["---", "---:", "---:", "---", "---:", "---:"])
    chosen = {name: getattr(arguments, name) for name in ("examples", "steps", "tests", "seeds", "checkpoint")}
    stored: dict[str, Any] = {"rows": {}, **chosen, **report.provenance()}
    kinds = list(Score().kinds)
    table = [["who writes", *kinds], ["---", *["---:"] * len(kinds)]]
    for name, trainings in scores.items():
        f1 = np.array([[one.total.f1 for one in training] for training in trainings])
        interval = bootstrap_mean(f1.mean(axis=0))
        whole = sum((one for training in trainings for one in training), Score())
        rows.append(
            [name, str(len(trainings)), f"{interval.mean:.3f}", f"{interval.low:.3f} to {interval.high:.3f}",
             f"{whole.total.precision:.3f}", f"{whole.total.recall:.3f}"]
        )  # fmt: skip
        table.append([name, *(f"{whole.kinds[kind].precision:.2f} / {whole.kinds[kind].recall:.2f}" for kind in kinds)])
        stored["rows"][name] = {
            "f1": f1.round(6).tolist(), "kinds": {kind: asdict(tally) for kind, tally in whole.kinds.items()},
        }  # fmt: skip
    text = f"{report.markdown(rows)}\nPrecision / recall by kind of fact:\n\n{report.markdown(table)}"
    write_json(arguments.out, stored)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
