"""One evaluation by several processes, here or elsewhere: its cases in parts, and the records of these put together.

Any `concurrent.futures.Executor` will do, those of joblib, Dask or Ray among them: what travels is settings, a prompter
and a list of cases; each process makes the environment for itself and keeps it. What is measured is measured by
`sam_gym.evaluation.run`, and is the same for any number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_gym.envs.base import EngineVectorEnv
    from sam_gym.evaluation.records import EpisodeCase, Record
    from sam_gym.prompters import Prompter

TURNS = 2
"""A part has so many cases for each of an environment's rows: few enough for a bar to move, and rows seldom rest."""

Evaluated = Callable[["Prompter", "EngineVectorEnv", str, Sequence["EpisodeCase"]], "Record"]


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """An executor of new processes on this machine, which share its cores; Ctrl-C ends them.

    Args:
        workers: How many.

    Raises:
        ValueError: Fewer than one.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Spawned, not forked: a forked torch may wait for threads that the child does not have.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops, and says so once
    torch.set_num_threads(threads)


def in_parts(
    executor: Executor,
    part: Evaluated,
    prompter: Prompter,
    env: EngineVectorEnv,
    name: str,
    cases: Sequence[EpisodeCase],
    update: Callable[[int], Any],
) -> list[Record]:
    """Records of consecutive parts of `cases`, in order; `update` is told how many more have ended.

    Args:
        executor: Does the work.
        part: Evaluates some cases, in one process; a function of a module.
        prompter: Chooses the actions; has to be picklable, as all of this suite are.
        env: What the processes make their environment like. It is not used itself.
        name: Of the record.
        cases: What is to be evaluated.
        update: As above.
    """
    settings = {field.name: getattr(env.settings, field.name) for field in fields(env.settings)}
    made_of = pickle.dumps((type(env), env.num_envs, env.max_episode_steps, settings))
    size = TURNS * env.num_envs
    starts = range(0, len(cases), size)
    futures = {
        executor.submit(_evaluated, part, made_of, prompter, name, list(cases[start : start + size])): start
        for start in starts
    }
    found: dict[int, Record] = {}
    for future in as_completed(futures):
        record = future.result()
        found[futures[future]] = record
        update(len(record.cases))
    return [found[start] for start in starts]


def _evaluated(part: Evaluated, made_of: bytes, prompter: Prompter, name: str, cases: list[EpisodeCase]) -> Record:
    return part(prompter, _environment(made_of), name, cases)


@lru_cache(maxsize=2)
def _environment(made_of: bytes) -> EngineVectorEnv:
    """An environment of this process; another one with the same settings is not made twice."""
    kind, num_envs, limit, settings = pickle.loads(made_of)
    return kind(num_envs, autoreset_mode="Disabled", max_episode_steps=limit, **settings)
