"""Tuned decoders: files with a mask decoder, and perhaps a prompt encoder, that are put on top of a whole SAM.

A file that `save_decoder` wrote notes the checkpoint under it, so that its path alone says everything. For files of
others the base is named in "BASE+FILE". This file neither trains decoders nor finds their bases: the latter, and
`save_decoder` itself, are in `sam_gym.sam.checkpoints`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from segment_anything.modeling import Sam

from sam_gym.sam.added_token import NAME, add_token, shapes_of_token
from sam_gym.sam.architectures import differences, shapes_of
from sam_gym.sam.weights_files import CheckpointError, State, read, read_notes, sha256_once, write

_DECODER, _PROMPTS = "mask_decoder.", "prompt_encoder."


class Base(NamedTuple):
    """The checkpoint that a decoder was tuned on.

    Attributes:
        name: Name or absolute path.
        id: Its `checkpoint_id`.
    """

    name: str
    id: str

    def is_other_than(self, checkpoint_id: str) -> bool:
        """Whether these are other weights than `checkpoint_id`'s; a file may have been renamed."""
        return self.id.rpartition("-")[2] != checkpoint_id.rpartition("-")[2]


def write_decoder(sam: Sam, path: Path, base: Base) -> None:
    """Write a model's mask decoder and prompt encoder, and what they belong on.

    Raises:
        OSError: The file cannot be written.
    """
    tuned = {name: tensor for name, tensor in sam.state_dict().items() if name.startswith((_DECODER, _PROMPTS))}
    write(path, tuned, {"base": base.name, "base_id": base.id})


def base_of(path: Path) -> Base | None:
    """The checkpoint noted in an existing file that `write_decoder` wrote, None for any other file of weights.

    Raises:
        CheckpointError: The file is damaged.
    """
    notes = read_notes(path)
    return Base(notes["base"], notes["base_id"]) if "base" in notes else None


def put_on(sam: Sam, path: Path) -> None:
    """Replace a model's mask decoder, and its prompt encoder if the file has one; the image encoder stays.

    Args:
        sam: The base.
        path: A file with the tensors `mask_decoder.*`, with or without `prompt_encoder.*`, wrapped as
            `sam_gym.sam.weights_files.read` knows it; or the state dict of a `MaskDecoder` by itself.

    Raises:
        CheckpointError: The file cannot be read, is a whole SAM, or does not fit; the model is then as it was.
    """
    state = _read_decoder(path)
    parts = (_DECODER, _PROMPTS) if any(name.startswith(_PROMPTS) for name in state) else (_DECODER,)
    expected = {name: shape for name, shape in shapes_of(sam.state_dict()).items() if name.startswith(parts)}
    width = _token_width(state)
    if width:
        expected |= shapes_of_token(sam.prompt_encoder, width, f"{_PROMPTS}{NAME}.")
    if told := differences(expected, shapes_of(state)):
        raise CheckpointError(
            f"{path} does not fit on its base: {told}. What is needed is mask_decoder.*, alone or with "
            "prompt_encoder.*, of the architecture of the base."
        )
    if width:
        with torch.random.fork_rng(devices=[]):  # its first weights are thrown away at once
            add_token(sam.prompt_encoder, width)
    sam.load_state_dict(state, strict=False)  # not strict, since the encoder is not there; the rest was checked


def _token_width(state: State) -> int:
    """Numbers in the added token's vector, 0 if the file has no such token."""
    vector = state.get(f"{_PROMPTS}{NAME}.vector")
    return 0 if vector is None else vector.numel()


def _read_decoder(path: Path) -> State:
    state = read(path)
    if any(name.startswith("image_encoder.") for name in state):
        raise CheckpointError(f"{path} is not a decoder: it has an image encoder too. Load it by its path alone.")
    if "iou_token.weight" in state:
        return {f"{_DECODER}{name}": tensor for name, tensor in state.items()}
    return state


def combined_digest(base_id: str, path: Path) -> str:
    """12 hexadecimal digits for the base with this `checkpoint_id` under the decoder in this file."""
    base_digest = base_id.rpartition("-")[2]
    return hashlib.sha256(f"{base_digest}+{sha256_once(path)}".encode()).hexdigest()[:12]
