"""`sam-gym render`: one episode as a film or a strip of pictures."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sam_gym._utils.asking import env_settings
from sam_gym.commands.common import DataMode, EnvId, NamedPrompter, Precision, Sets, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SECONDS, LAST_SECONDS = 0.8, 2.4
"""How long a picture of a film stays, and how long the last one does."""


def render(
    env_id: EnvId,
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    prompter: Annotated[str, tyro.conf.arg(metavar="NAME|AGENT")] = "",
    split: Split = "test",
    image: str | None = None,
    object: Annotated[int | None, tyro.conf.arg(name="object")] = None,
    seed: int = 0,
    action_mode: str | None = None,
    data: DataMode = "auto",
    checkpoint: str = "mobile_sam",
    device: str = "auto",
    precision: Precision = "auto",
    root: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    set: Sets = (),
) -> None:
    """Draw one episode: SAM's mask in blue, the truth's outline in yellow, the prompts, step by step.

    For example:

        sam-gym render SamPrompt-ISBI-v0 --out episode.gif
        sam-gym render SamPrompt-ISBI-v0 --prompter runs/NAME/model.zip --image section-24 --object 7 --out strip.png

    Args:
        env_id: Environment id; sam-gym list shows them.
        out: A .gif or .mp4 is a film, a .png all steps side by side. MP4 needs pip install imageio-ffmpeg.
        prompter: A scripted prompter ("box-only", "random", ...; oracles look at the truth) or an agent:
            model.zip of sam-gym train, a folder of sam-gym push, hf:OWNER/NAME. Default: the environment's oracle.
        split: Images of which split.
        image: Image id, or its number in the split; default drawn.
        object: Object id in that image; default drawn.
        seed: Of what is drawn: the image, the object, the first box, and the choices of prompters that draw.
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
    write = _writer(out)
    if object is not None and image is None:
        raise ValueError("--object needs --image: object ids count within one image")
    from sam_gym.evaluation import make_evaluation_env
    from sam_gym.evaluation.report import episode_frames
    from sam_gym.prompters import baselines

    settings = {"data": data, "checkpoint": checkpoint, "device": device, "precision": precision}
    named = NamedPrompter.parse(prompter, device)
    wanted = {**settings, **named.settings(env_id, action_mode), **asked}
    env = make_evaluation_env(env_id, split, 1, render_mode="rgb_array", **wanted)
    if not prompter:
        named = NamedPrompter(list(baselines(env.settings))[-1], None)
    posed: dict[str, Any] = {}
    if image is not None:
        posed["image"] = int(image) if image.isdecimal() and image not in env.data.image_ids else image
    if object is not None:
        posed["object"] = object
    frames = episode_frames(named.prompter(env, seed), env, posed, seed)
    write(out, frames)
    info = env.info(0)
    print(
        f"{named.name}: image {info['image']}, object {info['object']} of {info['source']}, {info['prompts']} prompts, "
        f"IoU {info['iou']:.3f}; {out}"
    )


def _writer(out: Path) -> Any:
    """What writes a file of this kind; ValueError, before anything is computed, if nothing does."""
    writers = {".gif": _write_gif, ".mp4": _write_mp4, ".png": _write_strip}
    suffix = out.suffix.lower()
    if suffix not in writers:
        raise ValueError(f"--out {out}: the name must end in {', '.join(writers)}")
    if suffix == ".mp4":
        try:
            import_module("imageio_ffmpeg")
        except ImportError as error:
            raise ValueError(
                f"--out {out}: MP4 needs imageio-ffmpeg, which is not installed: pip install imageio-ffmpeg, or name a"
                " .gif or .png"
            ) from error
    return writers[suffix]


def _write_gif(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    from PIL import Image

    from sam_gym._utils.fetching import atomic_path

    # One palette for all pictures, so that what does not change does not flicker.
    joined = Image.fromarray(_side_by_side(frames))
    palette = joined.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    first, *others = (Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames)
    milliseconds = [round(1000 * SECONDS)] * len(others) + [round(1000 * LAST_SECONDS)]
    with atomic_path(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)


def _write_mp4(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    import numpy as np

    height, width = frames[0].shape[:2]
    rate = 10  # players stumble over films of one picture a second
    path.parent.mkdir(parents=True, exist_ok=True)
    film = import_module("imageio_ffmpeg").write_frames(
        str(path), (width, height), fps=rate, quality=8, macro_block_size=2
    )
    film.send(None)
    for i, frame in enumerate(frames):
        shown = LAST_SECONDS if i == len(frames) - 1 else SECONDS
        for _ in range(round(shown * rate)):
            film.send(np.ascontiguousarray(frame))
    film.close()


def _write_strip(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    from PIL import Image

    from sam_gym._utils.fetching import atomic_path

    with atomic_path(path) as temporary:
        Image.fromarray(_side_by_side(frames)).save(temporary, "PNG")


def _side_by_side(frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    from sam_gym.envs.rendering import film_strip

    return film_strip(frames, len(frames))
