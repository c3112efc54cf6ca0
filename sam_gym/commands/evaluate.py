"""`sam-gym evaluate`: prompters side by side on every object of a split. `sam_gym.evaluation` does the work."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sam_gym._utils.asking import env_settings
from sam_gym.commands.common import DataMode, EnvId, NamedPrompter, Precision, Sets, Split

if TYPE_CHECKING:
    from sam_gym.envs.base import EngineVectorEnv
    from sam_gym.prompters import Prompter


def evaluate(
    env_id: EnvId,
    prompter: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME|AGENT ...")] = (),
    split: Split = "test",
    objects: int | None = None,
    action_mode: str | None = None,
    data: DataMode = "auto",
    checkpoint: str = "mobile_sam",
    device: str = "auto",
    precision: Precision = "auto",
    root: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    set: Sets = (),
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    workers: int = 1,
) -> None:
    """Measure prompters on every object of a split: a table, and a record with the IoU curve of each object.

    For example:

        sam-gym evaluate SamPrompt-ISBI-v0
        sam-gym evaluate SamPrompt-ISBI-v0 --prompter oracle-clicks runs/NAME/model.zip --objects 50
        sam-gym evaluate SamPrompt-Folder-v0 --root my_cells --set max_prompts=8 min_area=50

    Each object is posed once, from a box that is the same for every prompter. Records that are there already, of the
    same episodes, SAM and policy, are taken: after Ctrl-C the same command goes on with those that are missing.

    Args:
        env_id: Environment id; sam-gym list shows them.
        prompter: Scripted prompters ("box-only", "random", ...; oracles look at the truth) and agents:
            model.zip of sam-gym train, a folder of sam-gym push, hf:OWNER/NAME. Default: all scripted ones of the
            environment.
        split: Images of which split.
        objects: So many objects, evenly spread over the split; default all.
        action_mode: Of the environment, for scripted prompters; default the environment's own. SamPrompt: grid, point,
            box; SamBoxRefine: continuous, discrete.
        data: auto: real images, else a marked stand-in; real: an error instead; synthetic: the stand-in.
        checkpoint: SAM weights: a name or a file.
        device: Where SAM and the agent run: auto, cpu, cuda.
        precision: SAM's decoder: exact (float32), fast (bfloat16), official (segment_anything's own), auto (fast where
            the hardware has bfloat16, else exact).
        root: Folder of your own images and masks, for ids such as SamPrompt-Folder-v0 (docs/data.md).
        set: Settings of the environment, NAME=VALUE each; its page lists them.
        out: Folder of the records; default evaluations/ID-SPLIT, with the folder's name where there is --root.
        workers: Processes that share the work, a core or more each; the records are the same for any number.
    """
    asked = env_settings(env_id, root, set)
    if objects is not None and objects < 1:
        raise ValueError(f"--objects must be at least 1, got {objects}")
    from sam_gym.evaluation import evaluate_entries, make_evaluation_env, record_file
    from sam_gym.evaluation.parallel import processes
    from sam_gym.evaluation.report import print_table
    from sam_gym.prompters import baselines

    def environment(**more: Any) -> EngineVectorEnv:
        return make_evaluation_env(
            env_id, split, min(16, objects or 16), data=data, checkpoint=checkpoint, device=device, precision=precision,
            **{**more, **asked},
        )  # fmt: skip

    named = [NamedPrompter.parse(given, device) for given in prompter]
    if not named:
        mode = {} if action_mode is None else {"action_mode": action_mode}
        named = [NamedPrompter(name, None) for name in baselines(environment(**mode).settings)]
    if twice := {one.name for one in named if [other.name for other in named].count(one.name) > 1}:
        raise ValueError(f"two prompters would be called {sorted(twice)[0]!r}: evaluate them into two folders (--out)")
    folder = out or Path("evaluations") / "-".join([env_id, *([] if root is None else [root.name]), split])
    groups: dict[str, tuple[EngineVectorEnv, dict[str, Prompter]]] = {}
    for one in named:  # all are checked before any works; those that need equal settings share an environment
        settings = one.settings(env_id, action_mode)
        key = repr(sorted(settings.items()))
        if key not in groups:
            groups[key] = environment(**settings), {}
        env, entries = groups[key]
        entries[one.name] = one.prompter(env)
    with processes(workers) if workers != 1 else nullcontext() as executor:
        found = [evaluate_entries(entries, env, folder, objects, executor) for env, entries in groups.values()]
    records = [record for some in found for record in some]
    source = records[0].provenance["source"]
    stand_in = "" if source == records[0].provenance["data"] else f", STAND-IN DATA {source}"
    print()
    print_table(records, f"{env_id}, {split} split, {len(records[0].iou)} objects, {checkpoint}{stand_in}")
    print("\nrecords:", *(record_file(folder, record.name) for record in records), sep="\n  ")
