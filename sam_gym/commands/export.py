"""`sam-gym export`: episodes of a prompter as a Minari dataset. `sam_gym.evaluation.exporting` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sam_gym._utils.asking import env_settings
from sam_gym.commands.common import DataMode, EnvId, NamedPrompter, Precision, Sets, Split


def export(
    env_id: EnvId,
    dataset: Annotated[str, tyro.conf.arg(metavar="NAME-vN")],
    prompter: Annotated[str, tyro.conf.arg(metavar="NAME|AGENT")] = "",
    split: Split = "train",
    objects: int | None = None,
    action_mode: str | None = None,
    data: DataMode = "auto",
    checkpoint: str = "mobile_sam",
    device: str = "auto",
    precision: Precision = "auto",
    root: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    set: Sets = (),
) -> None:
    """Store a prompter's episodes as a Minari dataset, to learn from offline: one of each object of a split.

    For example:

        sam-gym export SamPrompt-ISBI-v0 --dataset isbi/oracle-clicks-v0 --objects 200
        sam-gym export SamPrompt-ISBI-v0 --dataset isbi/mine-v0 --prompter runs/NAME/model.zip

    In Python it is minari.load_dataset("isbi/oracle-clicks-v0"). Minari keeps datasets in $MINARI_DATASETS_PATH, else
    in ~/.minari/datasets. After Ctrl-C the same command goes on. With MobileSAM a step takes 0.4 MB, nearly all of it
    SAM's embedding; with --set observation=reference it takes kilobytes, and is of use where sam_gym and the images
    are. It needs the extra minari.

    Args:
        env_id: Environment id; sam-gym list shows them.
        dataset: Name of the new dataset, with a version at its end, such as cells/oracle-clicks-v0.
        prompter: A scripted prompter ("box-only", "random", ...; oracles look at the truth) or an agent:
            model.zip of sam-gym train, a folder of sam-gym push, hf:OWNER/NAME. Default: the environment's oracle.
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
    """
    asked = env_settings(env_id, root, set)
    if objects is not None and objects < 1:
        raise ValueError(f"--objects must be at least 1, got {objects}")
    from sam_gym.evaluation import make_evaluation_env
    from sam_gym.evaluation.exporting import export_episodes
    from sam_gym.prompters import baselines

    named = NamedPrompter.parse(prompter, device)
    settings = {"data": data, "checkpoint": checkpoint, "device": device, "precision": precision}
    wanted = {**settings, **named.settings(env_id, action_mode), **asked}
    env = make_evaluation_env(env_id, split, min(16, objects or 16), **wanted)
    if not prompter:
        named = NamedPrompter(list(baselines(env.settings))[-1], None)
    made = export_episodes(named.prompter(env), env, dataset, name=named.name, max_objects=objects)
    size = made.storage.get_size()
    print(
        f"{dataset}: {made.total_episodes} episodes of {named.name}, {made.total_steps} steps, {size:.1f} MB; "
        f"minari.load_dataset({dataset!r})"
    )
