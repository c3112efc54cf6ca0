"""Boxes of the wrong size: what tuning, iterative inference and an agent do about them; a published table, real data.

    python benchmarks/box_error.py                      tune and train what is missing (resumes), evaluate, print, store
    python benchmarks/box_error.py --datasets ISBI      one dataset only; each has results of its own
    python benchmarks/box_error.py --no-train           take what is tuned and trained, evaluate the rest

Rows, all on MobileSAM: SAM as it is; the iterated box alone, which prompts SAM with the rectangle around its own mask,
again and again, without any training; the tuned mask decoder, alone, with SAM's own prompt embeddings tuned too, and
with an added token; that last one with the iterated box; with an agent that moves the box's sides and looks at its
masks, three seeds; and with the tight box. Columns: the error of the size of the first box, 0 to 40 %, isotropic
(`sam_gym._utils.boxes.missized_box`), its direction fixed for each object. Everything is on the held-out sections. Each
tuning is agents/tune_decoder.py, each training agents/train_ppo.py, under runs/box_error/.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is loaded, see agents/train_ppo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import tyro
from numpy.typing import NDArray
from trainings import ROOT, command, finished, from_root

from sam_gym._utils.fetching import atomic_path
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.box_refine import OUTWARD
from sam_gym.evaluation import encode_images, evaluate_stored, make_evaluation_env, report, select_cases
from sam_gym.evaluation.bootstrap import Interval, bootstrap_mean
from sam_gym.evaluation.records import Record
from sam_gym.prompters import IterativeBox, Prompter, box_only, tight_boxes
from sam_gym.registration import OBJECTS
from sam_gym.sb3 import ModelPrompter, load_model

RESULTS = ROOT / "benchmarks" / "results"
ERRORS = (0.0, 0.1, 0.2, 0.3, 0.4)
REPEATS = 10
"""Cap of iterative inference."""
STEPS = {"VNCMitochondria": 500}
"""Steps of tuning where they are not agents/tune_decoder.py's default: there are an eighth as many objects."""

PUBLISHED = {
    "SAM, decoder tuned": (0.822, 0.810, 0.774, 0.699, 0.604),
    "+ own embeddings": (0.825, 0.810, 0.777, 0.702, 0.606),
    "P": (0.830, 0.820, 0.785, 0.714, 0.622),
    "P + K": (0.830, 0.817, 0.784, 0.727, 0.650),
}
"""Table 2 (ISBI) of the paper on prompt tuning and iterative inference: another SAM, another split of the stack."""

ROWS = ("SAM", "K alone", *PUBLISHED)
"""Rows that are the same for all seeds, in order."""

PUBLISHED_REPEATS = (1, 1.01, 1.05, 2.13, 3.16)

AGENT = "P + agent"
SHOWN = {
    "K alone": "iterated box alone",
    "SAM, decoder tuned": "tuned decoder",
    "+ own embeddings": "tuned decoder, own embeddings",
    "P": "tuned decoder + token",
    "P + K": "tuned decoder + token, iterated box",
    "P, tight box": "tuned decoder + token, tight box",
}
"""Name of a row in stored results and in files of runs -> its name in tables and pictures."""


def shown(name: str) -> str:
    """Name of a row in tables and pictures."""
    if name.startswith(AGENT):
        return f"{SHOWN['P']}, agent{name.removeprefix(AGENT)}"
    return SHOWN.get(name, name)


@dataclass(frozen=True)
class Arguments:
    """Tune, train and compare."""

    datasets: tuple[str, ...] = ("ISBI", "VNCMitochondria")
    """Second parts of the environments' ids."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the agent."""
    folder: Path = ROOT / "runs" / "box_error"
    """Where tuned decoders, runs and evaluations are; what is there is not done again."""
    max_objects: int = 504
    """So many objects at most of each dataset, evenly spread over its held-out sections."""
    train: bool = True
    """Tune and train what is missing; else leave those rows out."""


def tuned(arguments: Arguments, dataset: str, method: str) -> Path | None:
    """The decoder tuned by a method, None if it is missing and shall not be made."""
    file = arguments.folder / f"{dataset}-{method}.safetensors"
    if not file.is_file():
        if not arguments.train:
            return None
        steps = ["--steps", str(STEPS[dataset])] if dataset in STEPS else []
        command("agents/tune_decoder.py", "--dataset", OBJECTS[dataset], "--method", method, "--data", "real",
                "--out", from_root(file), *steps)  # fmt: skip
    return file


def trained(arguments: Arguments, dataset: str, seed: int, decoder: Path) -> Path | None:
    """The agent of a seed, None if it is missing and shall not be trained."""
    run = arguments.folder / f"{dataset}-agent-seed{seed}"
    how = [
        "--env", f"SamBoxRefine-{dataset}-v0", "--checkpoint", from_root(decoder), "--data", "real",
        "--seed", str(seed), "--test-objects", "32",
    ]  # fmt: skip
    return run / "model.zip" if finished(run, how, arguments.train) else None


def environment(dataset: str, checkpoint: str, error: float, action_mode: str) -> EngineVectorEnv:
    """Held-out objects and boxes with one error."""
    return make_evaluation_env(
        f"SamBoxRefine-{dataset}-v0", "test", data="real", precision="auto", checkpoint=checkpoint, box_error=error,
        action_mode=action_mode, max_prompts=REPEATS if action_mode == "discrete" else 5,
    )  # fmt: skip


def measure(
    arguments: Arguments, dataset: str, name: str, prompter: Prompter, checkpoint: str, action_mode: str
) -> list[Record]:
    """One row: a record for each error; those that are stored with equal provenance are taken as they are."""
    records = []
    for error in ERRORS:
        env = environment(dataset, checkpoint, error, action_mode)
        file = arguments.folder / "evaluations" / f"{dataset}-{name}-{error:.0%}.json".replace(" ", "_")
        title = f"{name} {error:.0%}"
        records.append(evaluate_stored(prompter, title, env, file, max_objects=arguments.max_objects)[0])
    return records


def rows_of(arguments: Arguments, dataset: str) -> dict[str, list[Record]]:
    """All rows of a dataset's table, name -> a record for each error."""
    whole = environment(dataset, "mobile_sam", 0.0, "continuous")
    encode_images(whole.backend, [whole.data])
    rows: dict[str, list[Record]] = {}

    def add(name: str, checkpoint: str, prompter: Prompter = box_only, action_mode: str = "discrete") -> None:
        rows[name] = measure(arguments, dataset, name, prompter, checkpoint, action_mode)

    add("SAM", "mobile_sam")
    add("K alone", "mobile_sam", IterativeBox())
    for name, method in (("SAM, decoder tuned", "decoder"), ("+ own embeddings", "embeddings"), ("P", "token")):
        if file := tuned(arguments, dataset, method):
            add(name, from_root(file))
    if decoder := tuned(arguments, dataset, "token"):
        add("P + K", from_root(decoder), IterativeBox())
        for seed in arguments.seeds:
            if file := trained(arguments, dataset, seed, decoder):
                space = environment(dataset, from_root(decoder), 0.0, "continuous").single_action_space
                agent = ModelPrompter(load_model(file, space))
                add(f"{AGENT}, seed {seed}", from_root(decoder), agent, "continuous")
        rows["P, tight box"] = [rows["P"][0]] * len(ERRORS)
    return rows


def final(records: list[Record]) -> NDArray[np.float64]:
    """(errors, objects) last IoU."""
    return np.stack([record.iou[:, -1] for record in records])


def comparisons(rows: dict[str, list[Record]]) -> dict[str, list[Interval]]:
    """Paired differences on the same objects, for each error."""
    values = {name: final(records) for name, records in rows.items()}
    agents = [value for name, value in values.items() if name.startswith(AGENT)]
    if agents:
        values[f"{AGENT}, mean of seeds"] = np.mean(agents, axis=0)
    pairs = [
        ("P", "SAM, decoder tuned"),
        ("+ own embeddings", "SAM, decoder tuned"),
        ("K alone", "SAM"),
        ("P + K", "P"),
    ]
    pairs += [(name, "P + K") for name in values if name.startswith(AGENT)]
    return {
        f"{shown(a)} - {shown(b)}": [bootstrap_mean(differences) for differences in values[a] - values[b]]
        for a, b in pairs
        if a in values and b in values
    }


def markdown(dataset: str, rows: dict[str, list[Record]], compared: dict[str, list[Interval]]) -> str:
    """The tables of one dataset."""
    objects = len(rows["SAM"][0].iou)
    head = ["", *(f"{error:.0%}" for error in ERRORS)]
    rule = ["---", *["---:"] * len(ERRORS)]
    body = [[shown(name), *(f"{value:.3f}" for value in final(records).mean(axis=1))] for name, records in rows.items()]
    if dataset == "ISBI":
        body += [
            [f"*published: {shown(name)}*", *(f"*{value:.3f}*" for value in values)]
            for name, values in PUBLISHED.items()
        ]
    repeats = [
        [shown(name), *(f"{record.prompts.mean():.2f}" for record in records)]
        for name, records in rows.items()
        if records[0].provenance["max_prompts"] and any(record.prompts.any() for record in records)
    ]
    if dataset == "ISBI":
        repeats.append([f"*published: {shown('P + K')}*", *(f"*{value:.2f}*" for value in PUBLISHED_REPEATS)])
    differences = [
        [name, *(f"{i.mean:+.3f} [{i.low:+.3f}, {i.high:+.3f}]" for i in intervals)]
        for name, intervals in compared.items()
    ]
    return (
        f"## {dataset}: {objects} held-out objects\n\nMean IoU by error of the first box's size.\n\n"
        f"{report.markdown([head, rule, *body])}\n"
        "Mean number of repeats (iterated box) or of boxes given (agent). SAM decodes one mask more.\n\n"
        f"{report.markdown([head, rule, *repeats])}\n"
        "Differences on the same objects, 95 % paired bootstrap intervals.\n\n"
        f"{report.markdown([head, rule, *differences])}"
    )


def why(arguments: Arguments, dataset: str, rows: dict[str, list[Record]]) -> str:
    """A short ablation of iterative inference: where it gains or loses, and where the masks' sides lie.

    The iterated box goes on from the rectangle around the mask. So it can only gain where that rectangle lies nearer to
    the object's than the first box did, and it loses where masks fall short of their boxes everywhere.
    """
    if "P + K" not in rows:
        return ""
    data = environment(dataset, "mobile_sam", 0.0, "discrete").data
    cases = rows["P"][0].cases
    area = np.array([data.objects.area[data.find(case.image, case.object_id)] for case in cases])
    thirds = np.array_split(np.argsort(area, kind="stable"), 3)
    gains = final(rows["P + K"]) - final(rows["P"])
    by_size = [
        [f"{int(area[third].min())} to {int(area[third].max())} px", *(f"{gain[third].mean():+.3f}" for gain in gains)]
        for third in thirds
    ]
    reach = []
    for name, checkpoint in (
        ("SAM", "mobile_sam"),
        ("P", from_root(arguments.folder / f"{dataset}-token.safetensors")),
    ):
        for error in (0.0, ERRORS[-1]):
            moves = mask_sides(environment(dataset, checkpoint, error, "discrete"), arguments.max_objects)
            for label, chosen in (
                ("too small", moves[:, 0] < 0),
                ("right", moves[:, 0] == 0),
                ("too large", moves[:, 0] > 0),
            ):
                if chosen.any():
                    box, mask = moves[chosen].mean(axis=0)
                    reach.append(
                        [f"{shown(name)}, {error:.0%}, {label}", f"{box:+.3f}", f"{mask:+.3f}", str(int(chosen.sum()))]
                    )
    head = ["", *(f"{error:.0%}" for error in ERRORS)]
    return (
        "Where the iterated box gains: with it less without it, on the tuned decoder + token, by the object's area, "
        "thirds of the objects.\n\n"
        f"{report.markdown([head, ['---', *['---:'] * len(ERRORS)], *by_size])}\n"
        "Why: mean place of the first box's sides, and of the sides of its mask's bounding rectangle, outward from the "
        "tight box's, as a share of its extent. The iterated box gains where the mask's are nearer to 0.\n\n"
        + report.markdown([["first box", "box", "mask", "objects"], ["---", *["---:"] * 3], *reach])
    )


def mask_sides(env: EngineVectorEnv, max_objects: int) -> NDArray[np.float64]:
    """(objects, 2): how far the sides of the first box, and of its mask, lie outside the tight box's, on average."""
    cases, n = select_cases(env, max_objects), env.num_envs
    places = []
    for start in range(0, len(cases), n):
        chunk = (cases[start : start + n] + [cases[-1]] * n)[:n]
        env.reset(options={"image": [c.image for c in chunk], "object": [c.object_id for c in chunk],
                           "cue": np.array([c.cue for c in chunk])})  # fmt: skip
        tight = tight_boxes(env)
        extent = np.tile(tight[:, 2:] - tight[:, :2], 2) * OUTWARD
        boxes = np.stack([env.episodes.box, env.episodes.mask_box], axis=1)
        places.append(((boxes - tight[:, None]) / extent[:, None]).mean(axis=2)[: len(cases) - start])
    return np.nan_to_num(np.concatenate(places), nan=-0.5)  # an empty mask has its sides in the middle


def plot(path: Path, dataset: str, rows: dict[str, list[Record]]) -> None:
    """Mean IoU against the error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.6, 4.4), layout="constrained")
    percent = [100 * error for error in ERRORS]
    for name, records in rows.items():
        agent = name.startswith(AGENT)
        label = None if agent and not name.endswith("seed 0") else shown(name).replace(", seed 0", " (each seed)")
        style: dict[str, Any] = {"color": "black", "linewidth": 1.6} if agent else {"linewidth": 1.3}
        if name in ROWS:  # the same colour for each dataset, whichever rows there are
            style["color"] = f"C{ROWS.index(name)}"
        if name == "P, tight box":
            style = {"color": "0.6", "linestyle": ":"}
        axis.plot(percent, final(records).mean(axis=1), marker="o", markersize=3, label=label, **style)
    if dataset == "ISBI":
        axis.plot(percent, PUBLISHED["P + K"], "--", color="0.5", linewidth=1, label=f"published: {shown('P + K')}")
    title = f"{dataset}, {len(rows['SAM'][0].iou)} objects"
    axis.set(xlabel="error of the first box's size, %", ylabel="mean IoU", title=title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def main() -> None:
    """Tune, train, evaluate, store, print."""
    arguments = tyro.cli(Arguments, description=__doc__)
    os.chdir(ROOT)  # checkpoints are named from here, in commands and in results
    try:
        tables = {dataset: rows_of(arguments, dataset) for dataset in arguments.datasets}
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from there")
    where_from = report.provenance()  # before anything is written, or the commit would count as changed
    for dataset, rows in tables.items():
        store(arguments, dataset, rows, where_from)


def store(arguments: Arguments, dataset: str, rows: dict[str, list[Record]], where_from: dict[str, Any]) -> None:
    """Print the tables of a dataset and write them, beside what they are made of and a picture."""
    text = markdown(dataset, rows, comparisons(rows)) + "\n" + why(arguments, dataset, rows)
    print(text)
    file = RESULTS / f"box_error-{dataset}.json"
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    table = {
        name: [{"summary": r.summary(), "iou": r.iou[:, -1].tolist(), "prompts": r.prompts.tolist()} for r in records]
        for name, records in rows.items()
    }
    stored = {**where_from, "errors": ERRORS, "table": table}
    file.write_text(json.dumps(stored, separators=(",", ":")) + "\n", encoding="utf-8")
    plot(file.with_suffix(".png"), dataset, rows)
    print(f"\nstored in {from_root(file)}, .md and .png\n")


if __name__ == "__main__":
    main()
