"""How much sooner several processes have evaluated a split than one, and that they find the same.

    python benchmarks/workers.py                     one and two processes, ISBI, MobileSAM; some minutes
    python benchmarks/workers.py --workers 1 2 4     as many as there are cores

One thread each. Images are embedded and processes have begun before the clock starts. Each number of processes is timed
in turn, several times; the ratio is that of medians. Stored in benchmarks/results/workers.{json,md}.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in the processes

import time
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from trainings import ROOT

from sam_gym._utils.fetching import embeddings_dir, write_json
from sam_gym.evaluation import encode_images, evaluate, make_evaluation_env, report
from sam_gym.evaluation.parallel import processes
from sam_gym.evaluation.records import COLUMNS, Record
from sam_gym.prompters import oracle_clicks

RESULT = ROOT / "benchmarks" / "results" / "workers.json"


@dataclass(frozen=True)
class Arguments:
    """Time an evaluation by one process and by several."""

    env: str = "SamPrompt-ISBI-v0"
    """Environment id."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of processes; the first is what the others are compared with."""
    objects: int = 192
    """Of the test split."""
    rounds: int = 3
    """How often each is timed."""


def main() -> None:
    """Evaluate, compare, store."""
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    if embeddings_dir() is None:
        raise SystemExit("SAM_GYM_EMBEDDINGS=off: processes would embed the images anew; leave it out")
    env = make_evaluation_env(arguments.env, "test", data="real", precision="exact")
    encode_images(env.backend, [env.data])
    seconds: dict[int, list[float]] = {n: [] for n in arguments.workers}
    records: dict[int, Record] = {}
    for _ in range(arguments.rounds):
        for n in arguments.workers:
            with nullcontext() if n == 1 else processes(n) as executor:
                # a part for each process, so that all have begun and have their environment
                evaluate(oracle_clicks, env, max_objects=64 * n, executor=executor, progress=False)
                started = time.perf_counter()
                records[n] = evaluate(oracle_clicks, env, max_objects=arguments.objects, executor=executor)
                seconds[n].append(time.perf_counter() - started)
    first = arguments.workers[0]
    for n, record in records.items():
        for name in COLUMNS:
            if not np.array_equal(getattr(record, name), getattr(records[first], name)):
                raise SystemExit(f"{n} processes find other {name} than {first}")
    medians = {n: float(np.median(times)) for n, times in seconds.items()}
    rows = [["processes", "objects", "seconds", "times as fast"], ["---", "---:", "---:", "---:"]]
    for n, median in medians.items():
        rows.append([str(n), str(arguments.objects), f"{median:.1f}", f"{medians[first] / median:.2f}"])
    stored = {
        "env": arguments.env, "objects": arguments.objects, "rounds": arguments.rounds,
        "seconds": {str(n): times for n, times in seconds.items()},
        "objects_per_second": {str(n): arguments.objects / median for n, median in medians.items()},
        "ratio": {str(n): medians[first] / median for n, median in medians.items()},
        "equal": True, **report.provenance(),
    }  # fmt: skip
    write_json(RESULT, stored)
    RESULT.with_suffix(".md").write_text(report.markdown(rows), encoding="utf-8")
    print(report.markdown(rows))


if __name__ == "__main__":
    main()
