"""How fast prompts become masks, and steps become observations: this package beside loops over SamPredictor.

    python benchmarks/throughput.py                          everything, MobileSAM; minutes
    python benchmarks/throughput.py --sections one batch     only some sections (see --help)
    python benchmarks/throughput.py --checkpoint vit_b --sections one    another SAM (a name or a file)

Machines are shared and noisy, so what counts are ratios: the methods of a section take turns, and a row gives the
median over the turns of baseline seconds / own seconds, with the quartiles. What needs a GPU says "not measured" where
there is none.
Stores benchmarks/results/throughput-CHECKPOINT.json and .md; sections that are not asked for keep their stored rows.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.vector import SyncVectorEnv
from loop_env import LoopEnv
from rich.console import Console
from rich.table import Table
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from trainings import command
from turns import HEAD, IMAGES, Bench, Row, Timed, compared, quartiles, take_turns
from windows import fovea

import sam_gym  # noqa: F401  (registers the environments)
from sam_gym._utils.boxes import noisy_box
from sam_gym._utils.fetching import write_json
from sam_gym._utils.progress import progress_bar
from sam_gym.data import load_data
from sam_gym.envs import observations, references
from sam_gym.envs.episode import GridActions, view_of
from sam_gym.envs.prompt import PromptSettings
from sam_gym.envs.shown_prompts import ShownClicks
from sam_gym.evaluation import encode_images, report
from sam_gym.sam import PromptBatch, SamBackend, checkpoint_id

RESULTS = Path(__file__).resolve().parent / "results"
FIDELITY_OBJECTS = 40
GPU_BATCHES = (1, 16, 64, 256, 1024)
FLOPS_PER_PROMPT = 3.6e9
"""Of the stock decoder (DESIGN), for shares of a GPU's roofline."""


@dataclass(frozen=True)
class Arguments:
    """Measure the backend and the environments beside loops over SamPredictor."""

    sections: tuple[
        Literal["one", "batch", "fovea", "env", "overhead", "training", "memory", "fidelity", "growth", "gpu"], ...
    ] = ()
    """Which; default all."""
    checkpoint: str = "mobile_sam"
    """SAM weights: a name or a file."""
    repeats: int = 9
    """Turns per section; medians are over them."""
    exact_only: bool = False
    """Leave out "fast" in the sections fovea, env and overhead: without bfloat16 in hardware it takes forever."""
    machine: str = ""
    """What the machine is called in the names of the stored files, where it is not the one of the published tables."""
    data: str = "real"
    """real: the ISBI sections; synthetic: generated ones, nothing to download."""


# ------------------------------------------------------------------------------------------------------- sections


def one_prompt(bench: Bench) -> Iterable[Row]:
    """One box on one image, mask at full size out."""
    return _prompts(bench, "one prompt", 1)


def batch(bench: Bench) -> Iterable[Row]:
    """Sixteen boxes on sixteen images."""
    return _prompts(bench, "batch of different images", IMAGES)


def _prompts(bench: Bench, section: str, n: int) -> Iterable[Row]:
    reference, exact, fast = bench.official(n), bench.ours(bench.exact, n), bench.ours(bench.fast, n)
    methods = {
        "loop over SamPredictor, cached features": lambda: bench.official(n),
        "SamBackend exact": lambda: bench.ours(bench.exact, n),
        "SamBackend fast": lambda: bench.ours(bench.fast, n),
    }
    rows = compared(section, n, take_turns(methods, bench.arguments.repeats, section), n, "ms/prompt")
    for row, masks in zip(rows[1:], (exact, fast), strict=True):
        overlaps = [(a & b).sum() / max((a | b).sum(), 1) for a, b in zip(masks, reference, strict=True)]
        row.note = f"IoU with SamPredictor's masks {np.mean(overlaps):.4f} mean, {np.min(overlaps):.4f} worst"
    return rows


def vector_env(bench: Bench, n: int, precision: str, **more: Any) -> Any:
    """The environment, its images encoded."""
    env = gymnasium.make_vec(
        "SamPrompt-ISBI-v0", num_envs=n, vectorization_mode="vector_entry_point", autoreset_mode="SameStep",
        data=bench.arguments.data, checkpoint=bench.arguments.checkpoint, device="cpu", precision=precision, **more,
    )  # fmt: skip
    encode_images(env.backend, [env.data])
    return env


def env_steps(bench: Bench) -> Iterable[Row]:
    """Steps of 16 environments with random clicks, autoreset included."""
    n, steps = 16, 3
    envs: dict[str, Any] = {
        "SyncVectorEnv of loops over SamPredictor": SyncVectorEnv(
            [lambda: LoopEnv(bench.predictor.model, bench.data, bench.handles, bench.features)] * n,
            autoreset_mode="SameStep",
        ),
        "SamPromptVectorEnv exact": vector_env(bench, n, "exact"),
        "SamPromptVectorEnv fast": vector_env(bench, n, "fast"),
        "SamPromptVectorEnv exact, foveated": vector_env(bench, n, "exact", attention="foveated"),
        "SamPromptVectorEnv fast, foveated": vector_env(bench, n, "fast", attention="foveated"),
    }
    if bench.arguments.exact_only:
        envs = {name: env for name, env in envs.items() if "fast" not in name}
    methods = {}
    rng = np.random.default_rng(0)
    for name, env in envs.items():
        env.reset(seed=0)

        def run(env: Any = env) -> None:
            for _ in range(steps):
                env.step(rng.integers(0, 512, n))

        methods[name] = run
    rows = compared("env steps", n, take_turns(methods, bench.arguments.repeats, "env steps"), n * steps, "ms/step")
    for row in rows:
        row.note = f"{1e3 / row.value:.1f} steps/s"
    return rows


def overhead(bench: Bench) -> Iterable[Row]:
    """What a vector step and a reset cost besides decoding."""
    n = 16
    for precision, observation, attention in (
        ("exact", "full", "full"), ("fast", "full", "full"), ("fast", "reference", "full"),
        ("exact", "full", "foveated"), ("exact", "reference", "foveated"),
    ):  # fmt: skip
        if precision == "fast" and bench.arguments.exact_only:
            continue
        env = vector_env(bench, n, precision, observation=observation, attention=attention)
        backend, foveated = env.backend, attention == "foveated"
        calls, model = ("decode_windows", "_fovea") if foveated else ("decode", "_decoder")
        shown = f"{precision}{', foveated' if foveated else ''}, {observation} observations"
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        whole, decoder = Timed(getattr(backend, calls)), Timed(getattr(backend, model))
        if foveated:
            decoder.window = backend._fovea.window  # type: ignore[attr-defined]
        setattr(backend, calls, whole)
        setattr(backend, model, decoder)
        beside, arithmetic, resets = [], [], []
        try:
            for turn in range(3 * bench.arguments.repeats):
                whole.seconds, decoder.seconds, started = 0.0, 0.0, time.perf_counter()
                env.step(rng.integers(0, 512, n))
                wall = time.perf_counter() - started
                if turn:
                    beside.append(100 * (1 - whole.seconds / wall))
                    arithmetic.append(100 * (1 - decoder.seconds / torch.get_num_threads() / wall))
            for _ in range(bench.arguments.repeats):
                whole.seconds, started = 0.0, time.perf_counter()
                env.reset()
                resets.append((time.perf_counter() - started - whole.seconds) / n * 1e3)
        finally:
            delattr(backend, calls)
            setattr(backend, model, decoder.function)
        for what, values, unit in (
            ("step, beside SamBackend.decode", beside, "%"),
            ("step, beside the decoder's arithmetic (upscaling, IoU, idle threads count)", arithmetic, "%"),
            ("reset on a cached image, beside SamBackend.decode", resets, "ms"),
        ):
            low, middle, high = quartiles(np.array(values))
            yield Row(
                "overhead",
                f"{what}, {shown}",
                n,
                middle,
                unit,
                note=f"{low:.2g} to {high:.2g} {unit}",
            )


def training(bench: Bench) -> Iterable[Row]:
    """Cloning and PPO from end to end, as `make train` does them, without the validations between them."""
    few = ("--eval-objects", "8", "--evaluations", "1", "--test-objects", "8")
    for attention, steps in (("full", "320"), ("foveated", "1280")):
        with tempfile.TemporaryDirectory() as folder:
            command("agents/train_ppo.py", "--precision", "exact", "--checkpoint", bench.arguments.checkpoint, "--data",
                    bench.arguments.data, "--attention", attention, "--clone-steps", steps, "--ppo-steps", steps, *few,
                    "--run-dir", folder)  # fmt: skip
            timing = json.loads((Path(folder) / "record.json").read_text(encoding="utf-8"))["timing"]
        for stage, unit in (("clone", "states/s"), ("ppo", "steps/s")):
            shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in timing[stage]["shares"].items())
            note = f"{steps} steps: {shares}"
            yield Row("training, exact", f"{stage}, {attention}", 16, timing[stage]["steps_a_second"], unit, note=note)


def memory(bench: Bench) -> Iterable[Row]:
    """The rollout buffer of PPO with 16 environments x 128 steps, action masks included."""
    grid, prompts = 16, 5
    shown = ShownClicks()
    full = observations.observation_space(bench.exact.embedding_channels, grid, len(shown.channels), len(shown.numbers))
    seen = {"full": full, "reference": references.observation_space(shown, prompts)}
    for name, space in seen.items():
        buffer = MaskableDictRolloutBuffer(128, space, GridActions(grid).space, device="cpu", n_envs=16)
        arrays = [*buffer.observations.values(), *(a for a in vars(buffer).values() if isinstance(a, np.ndarray))]
        megabytes = sum(a.nbytes for a in arrays) / 1e6
        yield Row("rollout memory", f'observation="{name}"', 16, megabytes, "MB", note="128 steps")


def fidelity(bench: Bench) -> Iterable[Row]:
    """Masks of "fast" against those of "exact", along random clicks on validation objects, the mask fed back."""
    data = load_data("isbi2012", "val", bench.arguments.data)
    chosen = np.linspace(0, len(data.objects) - 1, FIDELITY_OBJECTS).round().astype(int)
    rng = np.random.default_rng(0)
    overlaps = []
    with progress_bar("fidelity", len(chosen), "object") as bar:
        for row in chosen:
            image = data.image(int(data.objects.image_index[row]))
            box = noisy_box(data.objects.box[row], 0.2, image.shape[:2], rng)
            clicks, labels = rng.uniform(box[:2], box[2:], (5, 2)), rng.integers(0, 2, 5)
            before: torch.Tensor | None = None
            for n in range(len(clicks) + 1):
                prompts = PromptBatch.from_lists(
                    boxes=[box], points=[clicks[:n]], labels=[labels[:n]], mask_logits=[before]
                )
                exact = bench.exact.decode(bench.exact.encode([image]), prompts, full=True)
                assert exact.full is not None
                fast = bench.fast.decode(bench.fast.encode([image]), prompts, truths=[exact.full[0][0]])
                assert fast.statistics is not None
                overlaps.append(fast.statistics.iou.item())
                before = exact.logits[0, 0]
            bar.update()
    low = np.quantile(overlaps, 0.05)
    note = f"worst {min(overlaps):.3f}, 5 % quantile {low:.3f}; 0 to 5 clicks on {len(chosen)} objects"
    yield Row(
        "fidelity", "IoU of fast masks with exact ones", len(overlaps), float(np.mean(overlaps)), "mean", note=note
    )


def growth(bench: Bench) -> Iterable[Row]:
    """Cost per prompt over batch sizes, and over prompts per mask."""
    cases = [("growth with N", n, 1) for n in (1, 2, 4, 8, 16, 32, 64)]
    cases += [("growth with clicks", IMAGES, points) for points in (0, 1, 2, 4, 8, 16, 32)]
    for section, n, points in cases:
        prompts = bench.clicks(n, points)
        handles = [bench.handles[i % IMAGES] for i in range(n)]
        methods = {
            "exact": partial(bench.exact.decode, handles, prompts),
            "fast": partial(bench.fast.decode, handles, prompts),
        }
        for name, values in take_turns(methods, bench.arguments.repeats, f"{n} masks, {points} clicks").items():
            milliseconds = float(np.median(values)) / n * 1e3
            yield Row(section, name, n, milliseconds, "ms/prompt", note=f"a box and {points} clicks")


def gpu(bench: Bench) -> Iterable[Row]:
    """Decodes on a GPU, in bfloat16, full and foveated."""
    if not torch.cuda.is_available():
        for method in ("SamBackend fast", "SamBackend fast, foveated"):
            for n in GPU_BATCHES:
                yield Row("GPU", method, n, float("nan"), "", note="no GPU on this machine")
        return
    backend = SamBackend(bench.arguments.checkpoint, "cuda", "fast")
    handles = backend.encode([bench.data.image(i) for i in range(IMAGES)])

    windows = [backend.window(handle, view_of(box, PromptSettings.view_scale))
               for handle, box in zip(handles, bench.boxes, strict=True)]  # fmt: skip

    def full(n: int, prompts: PromptBatch) -> None:
        backend.decode([handles[i % IMAGES] for i in range(n)], prompts)
        torch.cuda.synchronize()

    def foveated(n: int, prompts: PromptBatch) -> None:
        backend.decode_windows([windows[i % IMAGES] for i in range(n)], prompts)
        torch.cuda.synchronize()

    for method, run in (("SamBackend fast", full), ("SamBackend fast, foveated", foveated)):
        for n in GPU_BATCHES:
            torch.cuda.reset_peak_memory_stats()
            turn = partial(run, n, bench.clicks(n, 2))
            seconds = float(np.median(take_turns({"": turn}, bench.arguments.repeats, f"{method}, N = {n}")[""]))
            flops, memory = n / seconds * FLOPS_PER_PROMPT / 1e12, torch.cuda.max_memory_allocated() / 2**30
            note = f"{n / seconds:.0f} prompts/s, {flops:.1f} TFLOP/s by the stock decoder's count, {memory:.2f} GiB"
            yield Row("GPU", method, n, seconds / n * 1e3, "ms/prompt", note=note)


SECTIONS: dict[str, Callable[[Bench], Iterable[Row]]] = {
    "one": one_prompt, "batch": batch, "fovea": fovea, "env": env_steps, "overhead": overhead, "training": training,
    "memory": memory, "fidelity": fidelity, "growth": growth, "gpu": gpu,
}  # fmt: skip


def main() -> None:
    """Measure, print, store."""
    arguments = tyro.cli(Arguments, description=__doc__)
    bench = Bench(arguments)
    name = "-".join(filter(None, ("throughput", Path(arguments.checkpoint).stem, arguments.machine)))
    file = RESULTS / f"{name}.json"
    stored: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    about = {**report.provenance(), "checkpoint": checkpoint_id(arguments.checkpoint), "source": bench.data.source,
             "threads": torch.get_num_threads(), "repeats": arguments.repeats}  # fmt: skip
    for name in arguments.sections or SECTIONS:
        stored[name] = {"about": about, "rows": [vars(row) for row in SECTIONS[name](bench)]}
        stored = {each: stored[each] for each in SECTIONS if each in stored}
        write_json(file, stored)  # what is measured stays, whatever happens to the next section
    rows = [Row(**row).cells() for section in stored.values() for row in section["rows"]]
    table = Table(*HEAD, title=f"{arguments.checkpoint}, {about['threads']} CPU threads, {bench.data.source}")
    for row in rows:
        table.add_row(*row)
    Console(width=None if os.isatty(1) else 160).print(table)
    file.with_suffix(".md").write_text(report.markdown([HEAD, ["---"] * len(HEAD), *rows]), encoding="utf-8")
    print(f"stored in {file.parent.name}/{file.name}")


if __name__ == "__main__":
    main()
