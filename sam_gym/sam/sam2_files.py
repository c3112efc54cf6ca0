"""Files of SAM 2: which names there are, where their folders are found, and an identity of the weights in them.

A SAM 2 is a folder as Hugging Face's transformers writes it (`config.json`, `model.safetensors`). This file finds it;
`sam_gym.sam.sam2` runs it, and needs the extra "sam2". Checkpoints of SAM 1 are files of `sam_gym.sam.sources`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from sam_gym._utils.fetching import cache_dir
from sam_gym._utils.naming import first_line
from sam_gym.sam.weights_files import CheckpointError, sha256_once

SAM2: dict[str, str] = {
    "sam2.1_hiera_tiny": "facebook/sam2.1-hiera-tiny",
    "sam2.1_hiera_small": "facebook/sam2.1-hiera-small",
    "sam2.1_hiera_base_plus": "facebook/sam2.1-hiera-base-plus",
    "sam2.1_hiera_large": "facebook/sam2.1-hiera-large",
    "medsam2": "",
}
"""Names, and the repository on the Hugging Face Hub of each; "" where there is none in this form."""

HUB = "hf:"
"""What stands before the name of any other repository on the Hub, as in "hf:owner/name"."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_KINDS = ("sam2", "sam2_video")  # `model_type` of the folders whose image model is a Sam2Model


def is_sam2(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is one of SAM 2: a name, "hf:owner/name", or a folder of transformers."""
    if isinstance(checkpoint, str) and (checkpoint in SAM2 or checkpoint.startswith(HUB)):
        return True
    return Path(checkpoint).expanduser().is_dir()


def folder_of(checkpoint: str | Path) -> Path:
    """The folder with the weights of a SAM 2.

    Args:
        checkpoint: One of

            - a name out of `SAM2`. Its folder is the one that the environment variable `SAM_GYM_<NAME>` names (a dot
              is a `_` there), else `checkpoints/<name>` in the cache folder, else what the Hugging Face Hub has, which
              its own client fetches and keeps;
            - "hf:owner/name", a repository on the Hub;
            - the path of a folder that transformers' `save_pretrained` wrote.

    Raises:
        CheckpointError: There is none, or it holds something else.
        ImportError: The Hub is needed, and its client is not installed.
    """
    if isinstance(checkpoint, str) and checkpoint.startswith(HUB):
        return _checked(_from_hub(checkpoint, checkpoint.removeprefix(HUB)))
    if not (isinstance(checkpoint, str) and checkpoint in SAM2):
        return _checked(Path(checkpoint).expanduser())
    if named := os.environ.get(variable_of(checkpoint)):
        return _checked(Path(named).expanduser())
    if (own := _own_folder(checkpoint)).is_dir():
        return _checked(own)
    return _checked(_from_hub(checkpoint, SAM2[checkpoint]))


def identity(checkpoint: str | Path) -> str:
    """`<name>-<12 hexadecimal digits>`: those of the sha256 of the file of weights. Raises as `folder_of`."""
    folder = folder_of(checkpoint)
    name = str(checkpoint) if checkpoint in SAM2 else Path(str(checkpoint).removeprefix(HUB)).name
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}-{sha256_once(folder / WEIGHTS)[:12]}"


def variable_of(name: str) -> str:
    """Environment variable in which a user may name the folder of one of `SAM2`."""
    return "SAM_GYM_" + re.sub(r"\W", "_", name.upper())


def refuse(checkpoint: str | Path) -> None:
    """Raise `CheckpointError` where a checkpoint of SAM 2 is given to what is written for SAM 1."""
    if is_sam2(checkpoint):
        if (folder := Path(checkpoint).expanduser()).is_dir():
            _checked(folder)  # a folder of something else is told as such
        raise CheckpointError(
            f"{str(checkpoint)!r} is a SAM 2, and segment_anything's own `Sam` is asked for: tuning decoders, added "
            "tokens, preferences and foveated decoding are written for SAM 1. Take a checkpoint of SAM 1, such as "
            "'mobile_sam'; to decode prompts with SAM 2, take get_backend(...)"
        )


def _own_folder(name: str) -> Path:
    return cache_dir() / "checkpoints" / name


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; a SAM 2 is a folder that transformers wrote")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; a SAM 2 is a folder as Sam2Model.save_pretrained writes it")
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is no configuration of transformers: {first_line(error)}") from error
    if kind not in _KINDS:
        raise CheckpointError(f"{folder} holds a model of type {kind!r}; expected {' or '.join(map(repr, _KINDS))}")
    return folder


def _from_hub(checkpoint: str, repository: str) -> Path:
    try:
        if not repository:
            raise ValueError("the Hugging Face Hub has none in transformers' form that is known here")
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS, "*processor_config.json"]))
    except ImportError as error:
        raise ImportError(f"{error}. SAM 2 needs the extra 'sam2': pip install 'sam_gym[sam2]'") from error
    except Exception as error:  # the Hub's client, its transport and the file system each have their own
        ways = f"(1) pass the path of a folder that transformers' Sam2Model.save_pretrained wrote{_CONVERSION}; "
        if checkpoint in SAM2:
            ways += f"(2) name it in {variable_of(checkpoint)}, or put it at {_own_folder(checkpoint)}; "
        ways += f"({2 + (checkpoint in SAM2)}) run once with a network connection" if repository else ""
        raise CheckpointError(
            f"the weights of {checkpoint} could not be had: {type(error).__name__}: {first_line(error)}\n"
            f"Ways out: {ways.removesuffix('; ')}."
        ) from error


_CONVERSION = " (docs/backends.md says how to convert Meta's .pt)"
