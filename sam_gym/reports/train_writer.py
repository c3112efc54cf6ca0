"""Train a writer of reports on generated blood smears: what it sees is SAM's embedding of the image and of the regions.

    python -m sam_gym.reports.train_writer                        writes runs/writer/tokens.safetensors
    python -m sam_gym.reports.train_writer --looks image          image tokens alone
    python -m sam_gym.reports.train_writer --looks marks          the image with outlines and numbers drawn into it
    python -m sam_gym.reports.train_writer --steps 200 --examples 100     a short one, to see it run

First the smears are encoded by SAM, a second or so each, once for all writers. Masks are half of the time the true ones
and half of the time SAM's, and each region is left out now and then, so that the writer learns not to trust them
blindly. After Ctrl-C the same command goes on. At the end it prints the F1 of its reports on validation smears.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.progress import run_with_bar
from sam_gym.reports.examples import MADE, TRUE, Examples, load_examples, turned_quadrant
from sam_gym.reports.facts import LARGEST, Fact, Statement
from sam_gym.reports.language import write
from sam_gym.reports.scores import Score, judge
from sam_gym.reports.writer import LOOKS, MARKS, TOKENS, Seen, Writer, WriterSettings
from sam_gym.sam.backend import get_backend
from sam_gym.sam.checkpoints import CheckpointError

VALIDATION = 50
BATCH = 50
"""Reports that are written together."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a writer is trained.

    Attributes:
        steps: Of AdamW; the learning rate rises over the first twentieth and then falls to 0 as a cosine.
        batch_size: Examples in a step.
        learning_rate: At its highest.
        mask_dropout: Share of the regions that are left out.
        made_masks: Share of the examples whose masks are SAM's.
        paraphrases: Whether each fact is said in any of its sentences; else in the first.
        seed: Of everything.
    """

    steps: int = 2500
    batch_size: int = 16
    learning_rate: float = 1e-3
    mask_dropout: float = 0.1
    made_masks: float = 0.5
    paraphrases: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("mask_dropout", "made_masks"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside 0..1")


class WriterTrainer:
    """Trains a writer step by step; each step can be stored and taken up again.

    Args:
        writer: What learns.
        examples: It learns of these.
        settings: See `TrainingSettings`.
        state: File that holds an interrupted run, or None to store nothing.

    Attributes:
        steps_done: Steps so far.
    """

    def __init__(self, writer: Writer, examples: Examples, settings: TrainingSettings, state: Path | None) -> None:
        self.writer, self.examples, self.settings, self.state = writer, examples, settings, state
        self.optimizer = torch.optim.AdamW(writer.parameters(), lr=settings.learning_rate, weight_decay=0.01)
        self.steps_done = 0
        if state is not None and state.is_file():
            self._resume(state)

    def run(self, after_step: Callable[[WriterTrainer, float], None]) -> None:
        """The steps that are left; `after_step` is told the loss of each."""
        while self.steps_done < self.settings.steps:
            rng = np.random.default_rng([self.settings.seed, self.steps_done])  # a resumed run goes on as it would have
            torch.manual_seed(int(rng.integers(2**31)))
            loss = self._step(rng)
            self.steps_done += 1
            after_step(self, loss)

    def store(self) -> None:
        """Write what a later run goes on from."""
        if self.state is None:
            return
        self.state.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.state) as path:
            torch.save(
                {
                    "steps": self.steps_done, "settings": self._identity(), "writer": self.writer.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                }, path,
            )  # fmt: skip

    def _step(self, rng: np.random.Generator) -> float:
        settings = self.settings
        share = self.steps_done / settings.steps
        rate = float(settings.learning_rate * min(20 * (share + 1 / settings.steps), (1 + np.cos(np.pi * share)) / 2))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = rng.integers(len(self.examples), size=settings.batch_size)
        which = int(rng.integers(8))
        whose = np.where(rng.random(len(rows)) < settings.made_masks, MADE, TRUE)
        seen = look(self.examples, rows, whose, marked=self.writer.settings.looks == MARKS, which=which)
        dropped = torch.as_tensor(rng.random(seen.there.shape) < settings.mask_dropout)
        seen.there &= ~dropped
        words = rng if settings.paraphrases else None
        texts = [write(turned(self.examples.facts_of(int(row)), which), words) for row in rows]
        self.writer.train()
        loss = self.writer.loss(seen, texts)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.writer.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def _identity(self) -> dict:
        return {**asdict(self.settings), **asdict(self.writer.settings), "examples": len(self.examples)}

    def _resume(self, state: Path) -> None:
        stored = torch.load(state, weights_only=True)
        if stored["settings"] != self._identity():
            raise ValueError(
                f"{state} is of a run with other settings: finish that one with the command it was begun with, or "
                "remove the file"
            )
        self.writer.load_state_dict(stored["writer"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.steps_done = int(stored["steps"])


def look(
    examples: Examples, rows: np.ndarray, whose: np.ndarray | int, *, marked: bool = False, which: int = 0
) -> Seen:
    """What a writer sees of some examples.

    Args:
        examples: All of them.
        rows: (n,) which.
        whose: (n,) `TRUE` or `MADE`, whose masks.
        marked: The image is the one with marks.
        which: One of the eight symmetries of the square; SAM's features are turned as if SAM knew no direction.
    """
    whose = np.broadcast_to(whose, rows.shape)
    image = torch.as_tensor((examples.marked if marked else examples.image)[rows]).float()
    return Seen(
        image=_turned(image, which),
        features=torch.as_tensor(examples.features[rows, whose]).float(),
        maps=_turned(torch.as_tensor(examples.maps[rows, whose]).float(), which),
        there=torch.as_tensor(examples.types[rows] >= 0),
    )


def _turned(x: Tensor, which: int) -> Tensor:
    """One of the eight symmetries on the last two axes, numbered as in `turned_quadrant`."""
    if which & 1:
        x = x.flip(-1)
    if which & 2:
        x = x.flip(-2)
    return x.transpose(-1, -2) if which & 4 else x


def turned(facts: list[Fact], which: int) -> list[Fact]:
    """Facts about an image after one of the eight symmetries."""
    return [fact._replace(value=turned_quadrant(fact.value, which)) if fact.kind == LARGEST else fact for fact in facts]


def written(writer: Writer, examples: Examples, whose: int) -> list[str]:
    """A writer's report of each example."""
    texts: list[str] = []
    for start in range(0, len(examples), BATCH):
        rows = np.arange(start, min(start + BATCH, len(examples)))
        texts += writer.write(look(examples, rows, whose, marked=writer.settings.looks == MARKS))
    return texts


def score_of(texts: list[str], examples: Examples) -> list[Score]:
    """What each report is worth, ungrounded: a language model does not say which pixels it means."""
    return [judge(text, [Statement(fact, None) for fact in examples.facts_of(row)]) for row, text in enumerate(texts)]


@dataclass(frozen=True)
class Arguments:
    """Train a writer of reports."""

    looks: str = TOKENS
    """What it sees: image, marks, masks (tokens of regions without spatial ones), tokens."""
    examples: int = 600
    """Generated smears to learn of."""
    steps: int = TrainingSettings.steps
    """Steps of AdamW."""
    paraphrases: bool = False
    """Learn all sentences of a fact, instead of the first."""
    seed: int = 0
    """Of first weights, order, dropout."""
    checkpoint: str = "mobile_sam"
    """SAM: a name or a file."""
    cache: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/writer/examples")
    """Where encoded smears are kept; one folder for each SAM."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The file to write; default runs/writer/LOOKS.safetensors."""


def main() -> None:
    """Parse the arguments, train, save, print the F1 on validation smears."""
    arguments = tyro.cli(Arguments, description=__doc__)
    out = arguments.out or Path(f"runs/writer/{arguments.looks}.safetensors")
    if out.exists():
        sys.exit(f"error: {out} is there already: remove it, or name another file with --out")
    if arguments.looks not in LOOKS:
        sys.exit(f"error: --looks {arguments.looks}: choose from {', '.join(LOOKS)}")
    try:
        train(arguments, out)
    except (CheckpointError, ImportError, ValueError) as error:
        sys.exit(f"error: {error}")


def train(arguments: Arguments, out: Path) -> None:
    """Run the steps that are left, save, report."""
    backend = get_backend(arguments.checkpoint, "cpu")
    torch.manual_seed(arguments.seed)
    writer = Writer(WriterSettings(looks=arguments.looks, channels=backend.embedding_channels))
    print(f"{writer.parameters_in_all:,} parameters, {len(writer.words)} words", file=sys.stderr)
    try:
        known = load_examples("train", arguments.examples, backend, arguments.cache)
        held_out = load_examples("val", VALIDATION, backend, arguments.cache)
        settings = TrainingSettings(steps=arguments.steps, paraphrases=arguments.paraphrases, seed=arguments.seed)
        trainer = WriterTrainer(writer, known, settings, out.with_suffix(".state"))
        run_with_bar(trainer, "writer")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from there")
    writer.save(out)
    out.with_suffix(".state").unlink(missing_ok=True)
    print(f"saved in {out}, {out.stat().st_size / 1e6:.1f} MB")
    for name, whose in (("true masks", TRUE), ("SAM's masks", MADE)):
        total = sum(score_of(written(writer, held_out, whose), held_out), Score()).total
        print(f"validation, {name}: F1 {total.f1:.3f}, precision {total.precision:.3f}, recall {total.recall:.3f}")


if __name__ == "__main__":
    main()
