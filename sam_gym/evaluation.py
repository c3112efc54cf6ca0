"""`evaluate`: one prompter over every object of a split, exactly once, from fixed cues -> a record of IoU curves.

`evaluate_stored` keeps records on disk, `make_evaluation_env` makes the environment; tables and pictures are not here.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from sam_gym.data import SegmentationData
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.settings import Settings
from sam_gym.fetching import write_json
from sam_gym.metrics import Interval, bootstrap_mean
from sam_gym.progress import progress_bar
from sam_gym.prompters import Prompter
from sam_gym.sam.backend import SamBackend
from sam_gym.sam.checkpoints import checkpoint_id

EPISODE_LIST_VERSION = 1
"""Changes whenever the rule by which cue boxes are drawn for evaluation changes."""


@dataclass(frozen=True)
class EpisodeCase:
    """One fixed episode: image index, object id, cue box in image pixels."""

    image: int
    object_id: int
    cue: tuple[float, float, float, float]


def episode_list(data: SegmentationData, settings: Settings) -> list[EpisodeCase]:
    """The fixed episodes of a split: every object once, its cue drawn from a generator seeded by what it is.

    The cue of an object does not depend on which other objects are in the split.

    Args:
        data: The split.
        settings: Say how a cue is drawn (`Settings.draw_cue`); nothing else of them counts.
    """
    cases = []
    for image, object_id, tight in zip(data.objects.image_index, data.objects.object_id, data.objects.box, strict=True):
        name = f"{EPISODE_LIST_VERSION}/{data.source}/{data.image_ids[image]}/{object_id}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
        height, width = data.image(int(image)).shape[:2]
        x0, y0, x1, y1 = (float(v) for v in settings.draw_cue(tight, (height, width), rng))
        cases.append(EpisodeCase(int(image), int(object_id), (x0, y0, x1, y1)))
    return cases


def episode_list_hash(cases: Sequence[EpisodeCase]) -> str:
    """Sha256 of an episode list."""
    return hashlib.sha256(json.dumps([asdict(case) for case in cases]).encode()).hexdigest()


@dataclass
class Record:
    """What one prompter did on one split.

    Attributes:
        name: The prompter's name.
        iou: (M, T + 1) float64 to 6 digits, IoU after 0..T prompts; after stop the last value is carried on.
        prompts: (M,) int64 prompts given.
        cases: The M episodes.
        provenance: What `evaluation_provenance` says, and seconds.
    """

    name: str
    iou: NDArray[np.float64]
    prompts: NDArray[np.int64]
    cases: list[EpisodeCase]
    provenance: dict[str, Any]

    @property
    def curve(self) -> NDArray[np.float64]:
        """(T + 1,) mean IoU after 0..T prompts."""
        return self.iou.mean(axis=0)

    @property
    def gain(self) -> Interval:
        """Mean IoU gained over the box alone, with the paired bootstrap interval."""
        return bootstrap_mean(self.iou[:, -1] - self.iou[:, 0])

    def summary(self) -> dict[str, Any]:
        """The numbers of a table row, JSON-able."""
        final = bootstrap_mean(self.iou[:, -1])
        return {
            "name": self.name,
            "objects": len(self.iou),
            "iou_after_prompts": [round(float(v), 6) for v in self.curve],
            "final_iou": asdict(final),
            "gain_over_box_only": asdict(self.gain),
            "mean_prompts": float(self.prompts.mean()),
            **self.provenance,
        }

    def to_json(self) -> dict[str, Any]:
        """Summary and everything per object, JSON-able."""
        objects = [
            {**asdict(case), "iou": curve.tolist(), "prompts": int(prompts)}
            for case, curve, prompts in zip(self.cases, self.iou, self.prompts, strict=True)
        ]
        return {"summary": self.summary(), "objects": objects}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Record:
        """The record that `to_json` stored."""
        objects = stored["objects"]
        cases = [EpisodeCase(o["image"], o["object_id"], tuple(o["cue"])) for o in objects]
        iou, prompts = np.array([o["iou"] for o in objects]), np.array([o["prompts"] for o in objects])
        record = cls(stored["summary"]["name"], iou, prompts, cases, {})
        measured = record.summary()  # whatever else the stored summary holds is provenance
        record.provenance = {name: value for name, value in stored["summary"].items() if name not in measured}
        return record


def make_evaluation_env(env_id: str, split: str, num_envs: int = 16, **settings: Any) -> EngineVectorEnv:
    """The vector environment that `evaluate` needs: one split, every reset left to the caller.

    Args:
        env_id: A registered id of this suite.
        split: "train", "val" or "test".
        num_envs: How many episodes share a decode.
        **settings: Of the environment, as for `gymnasium.make_vec`.
    """
    return gymnasium.make_vec(
        env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", split=split, autoreset_mode="Disabled",
        **settings,
    )  # type: ignore[return-value]  # fmt: skip


def select_cases(env: EngineVectorEnv, max_objects: int | None) -> list[EpisodeCase]:
    """The fixed episodes of the environment's split, or `max_objects` of them, evenly spread over the list.

    Raises:
        ValueError: `max_objects` is below 1.
    """
    cases = episode_list(env.engine.data, env.settings)
    if max_objects is None or max_objects >= len(cases):
        return cases
    if max_objects < 1:
        raise ValueError(f"an evaluation needs at least one object, got {max_objects}")
    return [cases[i] for i in np.linspace(0, len(cases) - 1, max_objects).round().astype(int)]


def evaluation_provenance(prompter: Prompter, env: EngineVectorEnv, cases: Sequence[EpisodeCase]) -> dict[str, Any]:
    """What a record's numbers depend on, JSON-able: equal provenance of scripted or saved prompters, equal numbers."""
    data, settings = env.engine.data, env.settings
    return {
        "split": data.split,
        "data": data.name,
        "source": data.source,
        "data_hash": data.hash(),
        "episode_list": {"version": EPISODE_LIST_VERSION, "sha256": episode_list_hash(cases)},
        "checkpoint": checkpoint_id(settings.checkpoint),
        "precision": env.engine.backend.precision,
        **settings.rules(),
        "policy": getattr(prompter, "identity", None),
    }


def encode_images(backend: SamBackend, splits: Iterable[SegmentationData]) -> None:
    """Run the encoder over all images of some splits, with a bar: afterwards no reset needs it."""
    images = [split.image(index) for split in splits for index in range(len(split.image_ids))]
    with progress_bar("encoding", len(images), "image") as bar:
        for image in images:
            backend.encode([image])
            bar.update()


def evaluate(
    prompter: Prompter,
    name: str,
    env: EngineVectorEnv,
    *,
    max_objects: int | None = None,
    progress: bool = True,
) -> Record:
    """Let a prompter work on every object of the environment's split, each exactly once.

    Args:
        prompter: Chooses the actions.
        name: What to call it in tables.
        env: A vector environment with autoreset_mode="Disabled"; it is reset and stepped.
        max_objects: Take only so many objects, evenly spread over the split's list; for quick looks while training.
        progress: Show a bar.

    Returns:
        The record.

    Raises:
        ValueError: The environment resets by itself, or `max_objects` is below 1.
    """
    if env.autoreset_mode.value != "Disabled":
        raise ValueError("evaluate() poses each episode itself: make the environment with autoreset_mode='Disabled'")
    cases = select_cases(env, max_objects)
    iou = np.full((len(cases), env.settings.max_prompts + 1), np.nan)
    prompts = np.zeros(len(cases), np.int64)
    started = time.perf_counter()
    n = env.num_envs
    current = np.full(n, -1)  # which case each row works on; -1: a spare run whose result is not taken
    waiting = iter(range(len(cases)))
    finished = np.ones(n, np.bool_)
    with progress_bar(name, len(cases), "object", shown=progress) as bar:
        while True:
            for row in np.flatnonzero(finished):
                current[row] = next(waiting, -1)
            if (current < 0).all():
                break
            observations = _pose(env, finished, [cases[max(c, 0)] for c in current])
            _note(iou, current, finished, env)
            finished = np.zeros(n, np.bool_)
            while not finished.any():
                observations, _, terminated, truncated, _ = env.step(prompter(observations, env))
                _note(iou, current, np.ones(n, np.bool_), env)
                finished = terminated | truncated
            done = current[finished & (current >= 0)]
            prompts[done] = env.engine.episodes.prompts[finished & (current >= 0)]
            bar.update(len(done))
    for step in range(1, iou.shape[1]):  # carry the last value on
        iou[:, step] = np.where(np.isnan(iou[:, step]), iou[:, step - 1], iou[:, step])
    seconds = round(time.perf_counter() - started, 1)
    provenance = {**evaluation_provenance(prompter, env, cases), "seconds": seconds}
    return Record(name, iou.round(6), prompts, cases, provenance)  # rounded, so that a stored record equals it


def evaluate_stored(
    prompter: Prompter, name: str, env: EngineVectorEnv, file: Path, *, max_objects: int | None = None
) -> tuple[Record, bool]:
    """`evaluate`, unless `file` holds the record of the same episodes, SAM and policy already; else it does then.

    Returns:
        The record, and whether it is the one that was stored.
    """
    if file.is_file():
        stored = Record.from_json(json.loads(file.read_text(encoding="utf-8")))
        wanted = evaluation_provenance(prompter, env, select_cases(env, max_objects))
        if {**stored.provenance, **wanted} == stored.provenance:
            return stored, True
    record = evaluate(prompter, name, env, max_objects=max_objects)
    write_json(file, record.to_json())
    return record, False


def evaluate_entries(
    entries: Mapping[str, Prompter], env: EngineVectorEnv, folder: Path, max_objects: int | None
) -> list[Record]:
    """Evaluate each entry on the environment's split, skipping those whose record is in `folder` already.

    A stored record counts only if it is of the same episodes, SAM and policy.
    """
    encode_images(env.engine.backend, [env.engine.data])
    records = []
    for name, prompter in entries.items():
        file = record_file(folder, name)
        there = file.is_file()
        record, taken = evaluate_stored(prompter, name, env, file, max_objects=max_objects)
        if taken:
            print(f"{name:>14}: taken from {file}", file=sys.stderr)
        elif there:
            print(f"{name:>14}: {file} was of other episodes or weights; evaluated anew", file=sys.stderr)
        records.append(record)
    return records


def record_file(folder: Path, name: str) -> Path:
    """Where `evaluate_entries` keeps the record of a prompter."""
    return folder / f"{name.replace(' ', '_')}.json"


def _pose(env: EngineVectorEnv, rows: NDArray[np.bool_], cases: list[EpisodeCase]) -> dict[str, NDArray]:
    options = {
        "image": [case.image for case in cases],
        "object": [case.object_id for case in cases],
        "cue": np.array([case.cue for case in cases]),
        "reset_mask": rows,
    }
    return env.reset(options=options)[0]


def _note(iou: NDArray, current: NDArray, rows: NDArray[np.bool_], env: EngineVectorEnv) -> None:
    counted = rows & (current >= 0)
    iou[current[counted], env.engine.episodes.prompts[counted]] = env.engine.quality.iou[counted]
