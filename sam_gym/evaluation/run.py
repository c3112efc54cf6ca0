"""`evaluate`: one prompter over every object of a split, exactly once, from fixed cues -> a `Record`.

`evaluate_stored` keeps records on disk, `make_evaluation_env` makes the environment; what a record says is in
`sam_gym.evaluation.records`, tables and pictures are not here either.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sam_gym._utils.fetching import write_json
from sam_gym._utils.progress import progress_bar
from sam_gym.data import SegmentationData
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.keeping import judge_by
from sam_gym.envs.settings import Settings
from sam_gym.evaluation.log import Log
from sam_gym.evaluation.parallel import in_parts, processes
from sam_gym.evaluation.records import EpisodeCase, Record, is_record
from sam_gym.evaluation.remembering import first_masks_remembered
from sam_gym.prompters import Prompter
from sam_gym.sam.checkpoints import checkpoint_id
from sam_gym.sam.interface import Backend

SCRIPTED = "sam_gym.prompters"

FULL = "full"
"""Attention of records that say nothing of it."""

EPISODE_LIST_VERSION = 1
"""Changes whenever the rule by which cue boxes are drawn for evaluation changes."""


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
        cue = settings.draw_cue(tight, (height, width), rng).tolist() if settings.has_cue else None
        cases.append(EpisodeCase(int(image), int(object_id), cue and tuple(cue)))
    return cases


def episode_list_hash(cases: Sequence[EpisodeCase]) -> str:
    """Sha256 of an episode list."""
    return hashlib.sha256(json.dumps([asdict(case) for case in cases]).encode()).hexdigest()


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
    cases = episode_list(env.data, env.settings)
    if max_objects is None or max_objects >= len(cases):
        return cases
    if max_objects < 1:
        raise ValueError(f"an evaluation needs at least one object, got {max_objects}")
    return [cases[i] for i in env.data.spread(max_objects)]


def evaluation_provenance(prompter: Prompter, env: EngineVectorEnv, cases: Sequence[EpisodeCase]) -> dict[str, Any]:
    """What a record's numbers depend on, JSON-able: equal provenance of scripted or saved prompters, equal numbers."""
    data, settings = env.data, env.settings
    return {
        "split": data.split,
        "data": data.name,
        "source": data.source,
        "data_hash": data.hash(),
        "episode_list": {"version": EPISODE_LIST_VERSION, "sha256": episode_list_hash(cases)},
        "checkpoint": checkpoint_id(settings.checkpoint),
        "precision": env.backend.precision,
        **({} if settings.attention == FULL else {"attention": settings.attention}),
        **settings.rules(),
        "reward": settings.reward,
        "policy": identity_of(prompter),
    }


def identity_of(prompter: Prompter) -> str:
    """What tells a prompter from others in records: its `identity`, else its module and name.

    A function is known by its name alone: give it an `identity` where its code changes and records of it are kept.

    Example:
        >>> from sam_gym.prompters import RandomPrompter, box_only
        >>> identity_of(box_only), identity_of(RandomPrompter(3))
        ('sam_gym.prompters.box_only', 'sam_gym.prompters.RandomPrompter(seed=3)')
    """
    named = prompter if hasattr(prompter, "__qualname__") else type(prompter)
    # Scripted prompters are known by the package that hands them on, in whichever of its files they are written
    module = SCRIPTED if named.__module__.startswith(f"{SCRIPTED}.") else named.__module__
    return getattr(prompter, "identity", f"{module}.{named.__qualname__}")


def encode_images(backend: Backend, splits: Iterable[SegmentationData]) -> None:
    """Run the encoder over all images of some splits, with a bar: afterwards no reset needs it."""
    images = [split.image(index) for split in splits for index in range(len(split.image_ids))]
    with progress_bar("encoding", len(images), "image") as bar:
        for image in images:
            backend.encode([image])
            bar.update()


def evaluate(
    prompter: Prompter,
    env: EngineVectorEnv | str,
    split: str | None = None,
    *,
    name: str | None = None,
    max_objects: int | None = None,
    cases: Sequence[EpisodeCase] | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    progress: bool = True,
    **settings: Any,
) -> Record:
    """Let a prompter work on every object of a split, each exactly once.

    For example, `evaluate(uncertainty, "SamPrompt-WBC-v0", "val", data="real")`.

    Args:
        prompter: Chooses the actions: a scripted one, a `sam_gym.sb3.ModelPrompter`, or a function of your own.
        env: Id of an environment; or a vector environment with autoreset_mode="Disabled", which is reset and stepped.
        split: "test" by default; that of the environment where one is given.
        name: What to call it in tables; default what `identity_of` says.
        max_objects: Take only so many objects, evenly spread over the split's list; for quick looks while training.
        cases: Take these, which are some of `episode_list`, and no others.
        workers: Processes on this machine that share the work; the record is the same for any number. A script that
            asks for more than one has to be importable (`if __name__ == "__main__":`), as for `multiprocessing`.
        executor: Does the work instead, on this machine or others (`sam_gym.evaluation.parallel`). Each process makes
            the environment by its settings: images that were handed over as `images=` are not there.
        progress: Show a bar.
        **settings: As for `make_evaluation_env`, where an id is given.

    Returns:
        The record.

    Raises:
        ValueError: The environment resets by itself or is of another split; settings are given beside an environment;
            `max_objects` or `workers` is below 1; or processes find other images than the environment has.
    """
    if isinstance(env, str):
        env = make_evaluation_env(env, split or "test", **settings)
    elif settings or split not in (None, env.settings.split):
        given = ", ".join(settings) or f"split={split!r}"
        raise ValueError(f"{given} cannot be had of an environment that is made already: give its id instead")
    if env.autoreset_mode.value != "Disabled":
        raise ValueError("evaluate() poses each episode itself: make the environment with autoreset_mode='Disabled'")
    name = identity_of(prompter) if name is None else name
    chosen = select_cases(env, max_objects) if cases is None else list(cases)
    with (
        progress_bar(name, len(chosen), "object", shown=progress) as bar,
        nullcontext(executor) if executor is not None or workers == 1 else processes(workers) as pool,
    ):
        return _shared_out(pool, prompter, env, name, chosen, bar.update)


def _shared_out(
    executor: Executor | None,
    prompter: Prompter,
    env: EngineVectorEnv,
    name: str,
    cases: list[EpisodeCase],
    update: Callable[[int], Any],
) -> Record:
    """The record of these cases, by an executor's processes or, without one, here."""
    if executor is None:
        return _evaluate(prompter, env, name, cases, update)
    started = time.perf_counter()
    parts = in_parts(executor, _evaluate, prompter, env, name, cases, update)
    provenance = evaluation_provenance(prompter, env, cases)
    return Record.merge(parts, provenance, round(time.perf_counter() - started, 1))


def _evaluate(
    prompter: Prompter,
    env: EngineVectorEnv,
    name: str,
    cases: Sequence[EpisodeCase],
    update: Callable[[int], Any] = lambda ended: None,
) -> Record:
    """The record of these cases; `update` is told how many more have ended."""
    log = Log(len(cases), env)
    judge_by(env.engine, prompter)
    started = time.perf_counter()
    n, backend = env.num_envs, env.backend
    current = np.full(n, -1)  # which case each row works on; -1: none is left for it, and it rests
    waiting = iter(range(len(cases)))
    ended = np.ones(n, np.bool_)
    first = True
    while True:
        for row in np.flatnonzero(ended):
            current[row] = next(waiting, -1)
        if (current < 0).all():
            break
        begun = ended & (first | (current >= 0))  # at first all: a prompter looks at every row
        if begun.any():
            decoded = backend.masks_decoded
            poses = {int(row): cases[max(current[row], 0)].pose() for row in np.flatnonzero(begun)}
            observations = env.begin_rows(poses)
            log.share_decodes(current, begun, backend.masks_decoded - decoded)
            log.note(current, begun)
        ended, first = np.zeros(n, np.bool_), False
        while not ended.any():
            decoded = backend.masks_decoded
            actions = np.asarray(prompter(observations, env))
            log.share_decodes(current, np.ones(n, np.bool_), backend.masks_decoded - decoded)
            acting = current >= 0
            if len(actions) != n:
                raise ValueError(f"{len(actions)} actions for {n} environments")
            observations, rewards = env.step_rows(np.flatnonzero(acting), actions[acting])
            log.reward(current[acting], rewards)
            log.note(current, acting)
            ended = acting & has_ended(env)
        log.close(current, ended)
        update(int(ended.sum()))
    seconds = round(time.perf_counter() - started, 1)
    provenance = evaluation_provenance(prompter, env, cases)
    return Record(name, cases=list(cases), provenance=provenance, seconds=seconds, **log.columns())


def has_ended(env: EngineVectorEnv) -> NDArray[np.bool_]:
    """(N,) bool: whose episodes are over."""
    limit = env.max_episode_steps
    return env.episodes.terminated | (False if limit is None else env.episodes.steps >= limit)


def is_current(
    stored: Mapping[str, Any], prompter: Prompter, env: EngineVectorEnv, max_objects: int | None = None
) -> bool:
    """Whether a stored record is what `evaluate` would find: of the same episodes, data, SAM, rules and policy."""
    return is_record(stored) and _covers(stored, evaluation_provenance(prompter, env, select_cases(env, max_objects)))


def _covers(stored: Mapping[str, Any], provenance: Mapping[str, Any]) -> bool:
    """Whether what is stored says of itself all that `provenance` says; it may say more."""
    found = {"attention": FULL, **stored["provenance"]}
    return {**found, "attention": FULL, **json.loads(json.dumps(provenance))} == found


def kept(
    file: Path,
    provenance: Mapping[str, Any],
    make: Callable[[], Mapping[str, Any]],
    valid: Callable[[Mapping[str, Any]], bool] = lambda content: True,
) -> tuple[Mapping[str, Any], bool]:
    """What a file holds, if it is of this provenance; else what `make` gives, which the file holds then.

    Args:
        file: JSON, with an entry "provenance".
        provenance: What the content depends on.
        make: Makes the content, that entry included.
        valid: Whether content is of a form that can be read.

    Returns:
        The content, and whether it was there already.
    """
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if valid(stored) and _covers(stored, provenance):
            return stored, True
    made = make()
    write_json(file, made)
    return made, False


def evaluate_stored(
    prompter: Prompter, name: str, env: EngineVectorEnv, file: Path, *, max_objects: int | None = None
) -> tuple[Record, bool]:
    """`evaluate`, unless `file` holds the record of the same episodes, SAM and policy already; else it does then.

    Returns:
        The record, and whether it is the one that was stored.
    """

    def make() -> dict[str, Any]:
        return evaluate(prompter, env, name=name, max_objects=max_objects).to_json()

    provenance = evaluation_provenance(prompter, env, select_cases(env, max_objects))
    content, taken = kept(file, provenance, make, is_record)
    return Record.from_json(content), taken


def evaluate_entries(
    entries: Mapping[str, Prompter],
    env: EngineVectorEnv,
    folder: Path,
    max_objects: int | None,
    executor: Executor | None = None,
) -> list[Record]:
    """Evaluate each entry on the environment's split, skipping those whose record is in `folder` already.

    A stored record counts only if it is of the same episodes, SAM and policy. What entries have in common is done once:
    the first mask of each episode (without an executor), and all of it where two entries are the same agent.
    """
    if executor is None:  # else each process encodes what it needs
        encode_images(env.backend, [env.data])
    cases = select_cases(env, max_objects)
    records: dict[str, Record] = {}
    with progress_bar("evaluating", len(cases) * len(entries), "object") as bar, first_masks_remembered(env.backend):
        for number, (name, prompter) in enumerate(entries.items(), 1):
            bar.set_description_str(f"evaluating {number}/{len(entries)}, {name}")
            file = record_file(folder, name)
            there, twin = file.is_file(), _twin(prompter, entries, records)

            def make(name: str = name, prompter: Prompter = prompter, twin: Record | None = twin) -> dict[str, Any]:
                if twin is not None:
                    return replace(twin, name=name).to_json()
                return _shared_out(executor, prompter, env, name, cases, bar.update).to_json()

            content, taken = kept(file, evaluation_provenance(prompter, env, cases), make, is_record)
            if taken:
                tqdm.write(f"{name:>14}: taken from {file}", file=sys.stderr)
            elif twin is not None:
                tqdm.write(f"{name:>14}: the same agent as {twin.name}", file=sys.stderr)
            elif there:
                tqdm.write(f"{name:>14}: {file} was of other episodes or weights; evaluated anew", file=sys.stderr)
            records[name] = Record.from_json(content)
            bar.update(number * len(cases) - bar.n)
    return list(records.values())


def _twin(prompter: Prompter, entries: Mapping[str, Prompter], records: Mapping[str, Record]) -> Record | None:
    """The record of an entry before this one that does the same, as far as both say what they are."""
    identity = getattr(prompter, "identity", None)
    same = [name for name in records if identity and getattr(entries[name], "identity", None) == identity]
    return records[same[0]] if same else None


def record_file(folder: Path, name: str) -> Path:
    """Where `evaluate_entries` keeps the record of a prompter."""
    return folder / f"{name.replace(' ', '_')}.json"
