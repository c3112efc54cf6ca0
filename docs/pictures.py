"""Draw an episode of every environment, acted by its oracle, for the pages of environments: docs/pictures/<id>.png.

    python docs/pictures.py                          all ids, with MobileSAM
    python docs/pictures.py SamPrompt-DSB-v1         some of them
    python docs/pictures.py --real --out pictures    on the real images of all datasets, for yourself

Pictures in the repository show pixels that everybody may republish: real ones where a dataset's terms allow it, and
generated ones in place of all others (`--real` shows those, and is not for committing). It draws one episode and
measures nothing: an episode's IoU in a picture is no result.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sam_gym import env_ids
from sam_gym._utils.fetching import atomic_path
from sam_gym.data import DATASETS, SegmentationData
from sam_gym.data.smears import CYTOPLASM, NUCLEUS, generate_smear
from sam_gym.data.whole_class import whole_class
from sam_gym.data.windows import windows_of
from sam_gym.envs.rendering import BOX, CUE, MASK, NEGATIVE, PAPER, POSITIVE, TRUTH, film_strip
from sam_gym.evaluation import make_evaluation_env
from sam_gym.evaluation.report import episode_frames
from sam_gym.prompters import baselines

SMEARS = {"wbc-cell": CYTOPLASM, "wbc-nucleus": NUCLEUS}
"""Datasets without a stand-in -> the first class of generated smears that is the object."""

OVERLAY = (BOX, CUE, MASK, NEGATIVE, POSITIVE, TRUTH)
SMEAR_SEEDS = (8, 9, 10, 11, 12, 13, 14, 15)
"""Generated smears with one white cell that lies wholly inside."""

DENOISED = "Denoise-Smears-v0"
"""The one of its family that is drawn, since its models ship."""

COLUMNS, MAX_BYTES = 4, 80_000


@dataclass(frozen=True)
class Arguments:
    """Draw an episode of environments, acted by the oracle."""

    ids: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ID ...")] = ()
    """Environment ids; default all."""
    out: Path = Path(__file__).parent / "pictures"
    """Folder of the pictures."""
    real: bool = False
    """Real images of all datasets. Their terms may forbid to republish them: see docs/data.md."""
    seed: int = 0
    """Of the image, the object and the first box; ids count on from it in their order."""


def main() -> None:
    """Parse the arguments, draw."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if unknown := sorted(set(arguments.ids) - {*env_ids(), DENOISED}):
        sys.exit(f"error: there is no environment {unknown[0]!r}; there are {', '.join([*env_ids(), DENOISED])}")
    for env_id in arguments.ids or env_ids():
        if env_id == DENOISED:
            draw_cell(arguments)
            continue
        env = make_evaluation_env(
            env_id, "test", 1, render_mode="rgb_array", precision="exact", **_pixels(env_id, arguments.real)
        )
        oracle = list(baselines(env.settings).values())[-1]
        posed = {"error": 0.4} if "error" in env.settings.reset_options else {}  # a box that needs correcting
        # Another draw for each id, or those that share a stand-in would all show the same.
        frames = episode_frames(oracle, env, posed, arguments.seed + env_ids().index(env_id))
        path = arguments.out / f"{env_id}.png"
        source = env.data.source
        write_strip(path, frames, source, COLUMNS - env_id.startswith("SamReport"))  # which has to be read
        print(f"{path}: {source}, {len(frames) - 1} steps, {path.stat().st_size / 1e3:.0f} kB")


def draw_cell(arguments: Arguments) -> None:
    """The film strip of an episode of the plain diffusion model of the smears."""
    env = gymnasium.make(DENOISED, action_mode="noise", device="cpu", render_mode="rgb_array")
    env.reset(seed=arguments.seed, options={"class": 0})
    rng, ended = np.random.default_rng(arguments.seed), False
    while not ended:
        _, _, ended, _, _ = env.step(rng.standard_normal(env.action_space.shape, np.float32))
    path, notes = arguments.out / f"{DENOISED}.png", PngInfo()
    notes.add_text("Source", "drawn by the diffusion model of the smears")
    with atomic_path(path) as temporary:
        Image.fromarray(np.asarray(env.render())).save(temporary, "PNG", optimize=True, pnginfo=notes)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def _pixels(env_id: str, real: bool) -> dict[str, Any]:
    """Which images the environment shows, as arguments of `gymnasium.make_vec`."""
    spec = DATASETS[str(gymnasium.spec(env_id).kwargs["dataset"])]
    if real or spec.may_be_shown:
        return {"data": "real"}
    if spec.stand_in is not None:
        return {"data": "synthetic"}
    smears = [generate_smear(seed) for seed in SMEAR_SEEDS]
    labels = [(smear.classes >= SMEARS[spec.name]).astype(np.int32) for smear in smears]
    ids = [f"smear-{seed}" for seed in SMEAR_SEEDS]
    data = SegmentationData(spec.name, "test", "generated smears", ids, [smear.image for smear in smears], labels)
    if env_id.startswith("SamReport"):
        return {"images": windows_of(data, None, 12, 50)}
    return {"images": whole_class(data) if "Semantic" in env_id else data}


def write_strip(path: Path, frames: list[NDArray[np.uint8]], source: str, columns: int = COLUMNS) -> None:
    """At most `columns` pictures of an episode side by side, the first and the last among them, as a small PNG.

    Args:
        path: Where to write.
        frames: The whole episode.
        source: What the pixels really are; the file says so under "Source", for the page to tell.
        columns: See above.
    """
    notes = PngInfo()
    notes.add_text("Source", source)
    chosen = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))
    strip = Image.fromarray(film_strip([frames[i] for i in chosen], len(chosen)))
    for scale in (0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3):
        size = round(strip.width * scale), round(strip.height * scale)
        small = _few_colours(strip.resize(size, Image.Resampling.LANCZOS))
        data = io.BytesIO()
        small.save(data, "PNG", optimize=True, pnginfo=notes)
        if data.tell() <= MAX_BYTES:
            with atomic_path(path) as temporary:
                temporary.write_bytes(data.getvalue())
            return
    raise ValueError(f"{path} cannot be made smaller than {MAX_BYTES} bytes")


def _few_colours(image: Image.Image, count: int = 32) -> Image.Image:
    """The image in `count` colours of its own, and those of mask, truth and prompts, however few pixels they have."""
    own = image.quantize(count, dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*own[: 3 * count], *(value for colour in (*OVERLAY, PAPER) for value in colour)])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
