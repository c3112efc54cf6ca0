"""`sam-gym push`: an agent as a folder, and that folder on the Hugging Face Hub. `sam_gym.sb3.folder` does the work."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from sam_gym.commands.common import load_agent


def push(
    agent: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="AGENT")],
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")] = "",
    to: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    record: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE|DIR ...")] = (),
    license: str | None = None,
    private: bool = False,
) -> None:
    """Share an agent: a folder of numbers and text, which cannot run code, on the Hugging Face Hub or on disk.

    For example:

        sam-gym push runs/NAME/model.zip alice/cells
        sam-gym push runs/NAME/model.zip --to cells
        sam-gym push benchmarks/agents/ENV/NAME.zip --to cells --record benchmarks/results/leaderboard/ENV/*.json

    Others use it as hf:alice/cells, or as the folder, wherever an agent is asked for. The folder holds the weights
    (policy.safetensors), what the agent is (sam_gym.json), and a model card (README.md) with how it did on test images,
    as far as records say so. Needs the extra sb3, and to upload the extra hub and `hf auth login`.

    Args:
        agent: model.zip of sam-gym train, which can run code when it is read: take your own. Or a folder that this
            command wrote; its card is kept unless there is --record.
        name: Repository on the Hugging Face Hub; it is made if there is none.
        to: Write the folder here; without OWNER/NAME nothing is uploaded.
        record: Records of the agent, and of others to show beside it, on the same episodes. Default: those of its run.
        license: Of the weights, by the Hub's identifier, such as apache-2.0. Nothing is said without it.
        private: A new repository is for you alone.
    """
    if not name and to is None:
        raise ValueError("name a repository, OWNER/NAME, or a folder with --to DIR")
    saved = load_agent(agent, "cpu")
    from sam_gym._utils.fetching import atomic_path
    from sam_gym._utils.hub import CARD, PREFIX, push_folder
    from sam_gym.sb3.card import model_card, records_of

    run = saved.file.parent
    own = run / "evaluations"  # of a training
    records = records_of(saved.identity, record or ([own] if saved.file.is_file() and own.is_dir() else []))
    if record and not records:
        raise ValueError(f"none of the records named is of this agent, {saved.identity}, on a test split")
    called = to.name if to is not None and not name else f"{PREFIX}{name.removeprefix(PREFIX)}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = to or Path(temporary) / "agent"
        saved.save_folder(folder)
        kept = saved.file / CARD
        if kept.is_file() and not records:
            if folder.resolve() != saved.file.resolve():
                shutil.copyfile(kept, folder / CARD)
        else:
            state = run / "state.json"
            quick = state.is_file() and json.loads(state.read_text(encoding="utf-8")).get("quick", False)
            parameters = sum(weights.numel() for weights in saved.policy.parameters())
            mark = "QUICK RUN, NO RESULT" if quick else ""
            with atomic_path(folder / CARD) as path:
                path.write_text(
                    model_card(called, saved.described, parameters, records, license, mark), encoding="utf-8"
                )
            if not records:
                print("the card says nothing of test images, for no record was found: name some with --record")
        if to is not None:
            print(f"{to}: {', '.join(f'{file.name} {file.stat().st_size:,} bytes' for file in sorted(to.iterdir()))}")
        if name:
            print(f"{push_folder(folder, called, private=private)}: use it as {called}")
