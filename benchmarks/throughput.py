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
from loop_env import LoopEnv, look_at
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from segment_anything import SamPredictor

import sam_gym  # noqa: F401  (registers the environments)
from sam_gym._utils.boxes import noisy_box
from sam_gym._utils.fetching import embeddings_dir, write_json
from sam_gym._utils.progress import progress_bar
from sam_gym.data import SegmentationData, load_data
from sam_gym.envs import observations, references
from sam_gym.envs.episode import GridActions
from sam_gym.envs.shown_prompts import ShownClicks
from sam_gym.evaluation import encode_images, report
from sam_gym.sam import ImageEmbedding, PromptBatch, SamBackend, checkpoint_id, load_sam

RESULTS = Path(__file__).resolve().parent / "results"
IMAGES = 16
FIDELITY_OBJECTS = 40
GPU_BATCHES = (1, 16, 64, 256, 1024)
FLOPS_PER_PROMPT = 3.6e9
"""Of the stock decoder (DESIGN), for shares of a GPU's roofline."""


@dataclass(frozen=True)
class Arguments:
    """Measure the backend and the environments beside loops over SamPredictor."""

    sections: tuple[Literal["one", "batch", "env", "overhead", "memory", "fidelity", "growth", "gpu"], ...] = ()
    """Which; default all."""
    checkpoint: str = "mobile_sam"
    """SAM weights: a name or a file."""
    repeats: int = 9
    """Turns per section; medians are over them."""
    data: str = "real"
    """real: the ISBI sections; synthetic: generated ones, nothing to download."""


@dataclass
class Row:
    """One line of the result: seconds per prompt (or what `unit` says), and the ratio to the section's baseline."""

    section: str
    method: str
    n: int
    value: float
    unit: str
    ratio: tuple[float, float, float] | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """As text."""
        ratio = "" if self.ratio is None else "{1:.2f} ({0:.2f} to {2:.2f})".format(*self.ratio)
        return [self.section, self.method, str(self.n) if self.n else "", f"{self.value:.4g} {self.unit}".strip()
                if np.isfinite(self.value) else "not measured", ratio, self.note]  # fmt: skip


HEAD = ["section", "method", "N", "median", "times faster (quartiles)", "note"]


class Bench:
    """Real images, their embeddings and prompts; SamPredictor and the backends over one and the same model."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.data: SegmentationData = load_data("isbi2012", "train", arguments.data)
        self.exact = SamBackend(arguments.checkpoint, "cpu", "exact", disk_cache=embeddings_dir())
        self.fast = SamBackend(arguments.checkpoint, "cpu", "fast", disk_cache=embeddings_dir())
        self.predictor = SamPredictor(load_sam(arguments.checkpoint))
        rng = np.random.default_rng(0)
        self.handles: list[ImageEmbedding] = []
        self.boxes: list[NDArray[np.float32]] = []
        images = 1 if set(arguments.sections) == {"one"} else IMAGES  # a ViT takes its time for each
        with progress_bar("encoding", images, "image") as bar:
            for i in range(images):
                image = self.data.image(i)
                self.handles += self.exact.encode([image])
                row = int(rng.choice(np.flatnonzero(self.data.objects.image_index == i)))
                self.boxes.append(noisy_box(self.data.objects.box[row], 0.2, image.shape[:2], rng))
                bar.update()
        # contiguous, as SamPredictor has them: ours are channels last, which the stock decoder is slower with
        self.features = [handle.features[None].contiguous() for handle in self.handles]

    def official(self, n: int) -> list[NDArray[np.bool_]]:
        """Masks at full size by SamPredictor, image after image."""
        masks = []
        for i in range(n):
            look_at(self.predictor, self.handles[i], self.features[i])
            masks.append(self.predictor.predict(box=self.boxes[i], multimask_output=False)[0][0])
        return masks

    def ours(self, backend: SamBackend, n: int) -> list[NDArray[np.bool_]]:
        """The same masks in one call."""
        prompts = PromptBatch.from_lists(boxes=self.boxes[:n])
        full = backend.decode(self.handles[:n], prompts, full=True).full
        assert full is not None
        return [mask[0].numpy() for mask in full]

    def clicks(self, n: int, points: int) -> PromptBatch:
        """Box and so many clicks in each of n images."""
        rng = np.random.default_rng(points)
        height, width = self.handles[0].image_size
        rows = range(n)
        return PromptBatch.from_lists(
            boxes=[self.boxes[i % IMAGES] for i in rows],
            points=[rng.uniform(0, (width - 1, height - 1), (points, 2)) for _ in rows],
            labels=[rng.integers(0, 2, points) for _ in rows],
        )


def take_turns(methods: dict[str, Callable[[], Any]], repeats: int, title: str) -> dict[str, NDArray[np.float64]]:
    """Seconds of each method in each turn, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    with progress_bar(title, repeats + 1, "turn") as bar:
        for turn in range(repeats + 1):
            for name, method in methods.items():
                started = time.perf_counter()
                method()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
            bar.update()
    return {name: np.array(values) for name, values in seconds.items()}


def quartiles(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """25, 50 and 75 %."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def compared(section: str, n: int, seconds: dict[str, NDArray], per: int, unit: str) -> list[Row]:
    """Rows of a section whose first method is the baseline; seconds are divided by `per` and given in ms."""
    baseline = next(iter(seconds.values()))
    return [
        Row(section, name, n, float(np.median(values)) / per * 1e3, unit, quartiles(baseline / values))
        for name, values in seconds.items()
    ]


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


class Timed:
    """A function that adds up the seconds spent in it, over all threads."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        started = time.perf_counter()
        result = self.function(*args, **kwargs)
        self.seconds += time.perf_counter() - started
        return result


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
    }
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
    for precision, observation in (("exact", "full"), ("fast", "full"), ("fast", "reference")):
        env = vector_env(bench, n, precision, observation=observation)
        backend = env.backend
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        whole, decoder = Timed(backend.decode), Timed(backend._decoder)
        backend.decode, backend._decoder = whole, decoder
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
            del backend.decode
            backend._decoder = decoder.function
        for what, values, unit in (
            ("step, beside SamBackend.decode", beside, "%"),
            ("step, beside the decoder's arithmetic (upscaling, IoU, idle threads count)", arithmetic, "%"),
            ("reset on a cached image, beside SamBackend.decode", resets, "ms"),
        ):
            low, middle, high = quartiles(np.array(values))
            yield Row(
                "overhead",
                f"{what}, {precision}, {observation} observations",
                n,
                middle,
                unit,
                note=f"{low:.2g} to {high:.2g} {unit}",
            )


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
    """Decodes on a GPU, in bfloat16."""
    if not torch.cuda.is_available():
        for n in GPU_BATCHES:
            yield Row("GPU", "SamBackend fast", n, float("nan"), "", note="no GPU on this machine")
        return
    backend = SamBackend(bench.arguments.checkpoint, "cuda", "fast")
    handles = backend.encode([bench.data.image(i) for i in range(IMAGES)])

    def run(n: int, prompts: PromptBatch) -> None:
        backend.decode([handles[i % IMAGES] for i in range(n)], prompts)
        torch.cuda.synchronize()

    for n in GPU_BATCHES:
        torch.cuda.reset_peak_memory_stats()
        prompts = bench.clicks(n, 2)
        values = take_turns({"": lambda n=n, p=prompts: run(n, p)}, bench.arguments.repeats, f"GPU, N = {n}")[""]
        seconds = float(np.median(values))
        flops, memory = n / seconds * FLOPS_PER_PROMPT / 1e12, torch.cuda.max_memory_allocated() / 2**30
        note = f"{n / seconds:.0f} prompts/s, {flops:.1f} TFLOP/s by the stock decoder's count, {memory:.2f} GiB"
        yield Row("GPU", "SamBackend fast", n, seconds / n * 1e3, "ms/prompt", note=note)


SECTIONS: dict[str, Callable[[Bench], Iterable[Row]]] = {
    "one": one_prompt, "batch": batch, "env": env_steps, "overhead": overhead, "memory": memory, "fidelity": fidelity,
    "growth": growth, "gpu": gpu,
}  # fmt: skip


def main() -> None:
    """Measure, print, store."""
    arguments = tyro.cli(Arguments, description=__doc__)
    bench = Bench(arguments)
    file = RESULTS / f"throughput-{Path(arguments.checkpoint).stem}.json"
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
