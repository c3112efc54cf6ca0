"""CLIP models by name: `load_clip` gives any open_clip model, frozen, with its tokenizer and preprocessing.

The offline default "clip-micro" ships with this package. It is a small model that this project trained itself, with
open_clip's own classes, on microscopy regions: never take its numbers for those of a published CLIP.

This file neither prepares images (`sam_gym.semantics.views`) nor compares them with texts (`sam_gym.semantics.scorer`,
`sam_gym.semantics.similarity`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_gym._utils.devices import resolve_device
from sam_gym._utils.naming import first_line, question
from sam_gym.sam.cache import EmbeddingCache

MICRO = "clip-micro"
MICRO_FOLDER = Path(__file__).with_name("clip_micro")
"""Holds `config.json` (architecture and preprocessing, in open_clip's form) and `weights.safetensors`."""

BATCH = 64
"""Images that go through a model together."""

CACHE_BYTES = 2**28
"""Memory of a model for what it found in whole images."""

FORMS = (
    f"Names: {MICRO!r}, 'MODEL/TAG' (open_clip), 'MODEL=FILE' (weights of an open_clip architecture), "
    "'hf-hub:ORG/NAME', 'local-dir:PATH'."
)


class ClipError(RuntimeError):
    """A CLIP model could not be had, or cannot do what is asked of it; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class ClipModel:
    """A frozen CLIP model with all that is needed to use it. Its methods run without gradients and keep texts.

    Attributes:
        name: What it was loaded as.
        model: open_clip's `CLIP` or `CustomTextCLIP`.
        tokenizer: open_clip's: texts -> int64 (K, context length). Longer texts are cut off.
        image_size: Side S of the square images that the image tower takes, px.
        mean, std: Of the RGB channels, for values in [0, 1].
        features: What `sam_gym.semantics.similarity` found in images, least recently used first out.
    """

    name: str
    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    features: EmbeddingCache = field(default_factory=lambda: EmbeddingCache(CACHE_BYTES), repr=False)
    _texts: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.logit_scale.device

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax (1 / temperature), as the model learned it."""
        return float(self.model.logit_scale.detach().exp())

    @cached_property
    def text_dim(self) -> int:
        """Length D of the embeddings of texts and images."""
        return self._embed_text("").shape[0]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts. Each is embedded once and by itself, so the result does not depend on the others.

        Args:
            texts: K texts. Used as they are: no template is put around them.

        Returns:
            (K, D) float32, of unit length, on the model's device.

        Raises:
            ValueError: A text is empty or blank, there is none, or `texts` is one string.
        """
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"a non-empty list of texts is needed, got {texts!r}")
        for text in texts:
            if not text.strip():
                raise ValueError(f"a text is empty: {list(texts)!r}; name what the region should be")
        return torch.stack([self._embed_text(text) for text in texts])

    def embed_nothing(self) -> Tensor:
        """The embedding (D,) of the empty text: what all texts share, by CLIP Surgery's account."""
        return self._embed_text("")

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Embed images.

        Args:
            pixels: float32 (N, 3, S, S), normalised by `mean` and `std`, on any device.

        Returns:
            (N, D) float32, of unit length, on the model's device.
        """
        return self.in_batches(lambda batch: F.normalize(self.model.encode_image(batch).float(), dim=-1), pixels)

    @torch.no_grad()
    def in_batches(self, function: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Apply a function of images to batches of at most `BATCH` on the model's device, and join what comes out."""
        parts = []
        for batch in pixels.split(BATCH):
            # Matrix products of a single image round otherwise than those of two or more, which agree to the last
            # bit with each other on the CPUs tried: an image alone goes in twice, so that its neighbours do not matter.
            alone = len(batch) == 1
            out = function((torch.cat([batch, batch]) if alone else batch).to(self.device))
            parts.append(out[:1] if alone else out)
        return torch.cat(parts)

    @torch.no_grad()
    def _embed_text(self, text: str) -> Tensor:
        if text not in self._texts:
            tokens = self.tokenizer([text]).to(self.device)
            self._texts[text] = F.normalize(self.model.encode_text(tokens).float(), dim=-1)[0]
        return self._texts[text]


def load_clip(name: str = MICRO, device: str = "auto") -> ClipModel:
    """Load a CLIP model, frozen, once for each name and device.

    Args:
        name: One of

            - "clip-micro": the small model of this package, the only one that needs no download;
            - "MODEL/TAG": an architecture and weights that open_clip knows, "ViT-B-32/laion2b_s34b_b79k";
            - "MODEL=FILE": weights of an open_clip architecture in a file, "ViT-B-32-quickgelu=~/openai.pt";
            - "hf-hub:ORG/NAME": a repository of the Hugging Face Hub with an `open_clip_config.json`;
            - "local-dir:PATH": a folder with an `open_clip_config.json` and weights.
        device: "auto" (CUDA if there is one, else CPU), "cpu", "cuda", "cuda:1" ...

    Returns:
        The model in eval mode, float32, without gradients. torch's global random state is left as it was.

    Raises:
        ClipError: open_clip is not installed; no such model, tag, file or folder; a download failed; the weights do
            not fit; the images are not square.
        ValueError: The device is not there.
    """
    return _load(name, str(resolve_device(device)))


@lru_cache(maxsize=8)
def _load(name: str, device: str) -> ClipModel:
    open_clip = import_open_clip()
    with torch.random.fork_rng(devices=[]):
        if name == MICRO:
            clip = _trained_micro()
        else:
            architecture, weights = _parse(name, open_clip)
            clip = _from_open_clip(name, architecture, weights, open_clip)
    clip.model.eval().requires_grad_(False).to(device)
    return clip


def import_open_clip() -> ModuleType:
    """The module `open_clip`, or a `ClipError` that says how to install it."""
    try:
        import open_clip
    except ImportError as error:
        raise ClipError(f"CLIP models need open_clip ({error}): pip install 'sam_gym[clip]'") from error
    return open_clip


# ---------------------------------------------------------------------------------------------- clip-micro


def untrained_micro() -> ClipModel:
    """clip-micro's architecture, to be trained: random weights from torch's global generator, on the CPU.

    While it changes, call `model.encode_text`: `ClipModel.embed_texts` keeps what it once found.
    """
    open_clip = import_open_clip()
    config = json.loads((MICRO_FOLDER / "config.json").read_text())
    architecture, preprocessing = config["model_cfg"], config["preprocess_cfg"]
    return ClipModel(
        name=MICRO,
        model=open_clip.CLIP(**architecture),
        tokenizer=open_clip.SimpleTokenizer(context_length=architecture["text_cfg"]["context_length"]),
        image_size=architecture["vision_cfg"]["image_size"],
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
    )


def _trained_micro() -> ClipModel:
    import safetensors.torch

    clip, file = untrained_micro(), MICRO_FOLDER / "weights.safetensors"
    try:
        clip.model.load_state_dict(safetensors.torch.load_file(file))  # copies, into float32
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ClipError(
            f"{MICRO}'s weights {file} cannot be read: {first_line(error)}. They are part of sam_gym: install it "
            "again, or train them anew: python -m sam_gym.semantics.train_clip"
        ) from error
    return clip


# ---------------------------------------------------------------------------------------------- open_clip's


def _parse(name: str, open_clip: ModuleType) -> tuple[str, str | None]:
    """What `open_clip.create_model` takes as architecture and weights, both checked as far as that needs no network."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return name, None
    architecture, equals, file = name.partition("=")
    if equals:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ClipError(f"CLIP model {name!r}: there is no file {path}. {FORMS}")
        return _known_architecture(name, architecture, open_clip), str(path)
    architecture, slash, tag = name.rpartition("/")
    architecture = _known_architecture(name, architecture if slash else name, open_clip)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not slash:
        raise ClipError(
            f"CLIP model {name!r} is an architecture; say which weights: "
            f"{_either(f'{architecture}/{tag}' for tag in tags) or f'{architecture}=FILE'}. {_offline()}"
        )
    if not open_clip.get_pretrained_cfg(architecture, tag):
        raise ClipError(f"CLIP model {name!r}: {architecture} has no tag {tag!r}. {_nearest(tag, tags)} {_offline()}")
    return architecture, tag


def _known_architecture(name: str, architecture: str, open_clip: ModuleType) -> str:
    known = open_clip.list_models()
    architecture = architecture.replace("/", "-")  # OpenAI wrote ViT-B/32
    if architecture not in known:
        near = _nearest(architecture, [MICRO, *known]) if architecture else ""
        raise ClipError(f"unknown CLIP model {name!r}. {near} {_offline()} {FORMS}")
    return architecture


def _nearest(word: str, known: Sequence[str]) -> str:
    """The known words nearest to one, as a question, or all of them if they are few and none is near."""
    if asked := question(word, known, n=4):
        return asked.lstrip()
    return f"There is {_either(known)}." if 0 < len(known) <= 12 else "open_clip.list_pretrained() lists all."


def _either(words: Iterable[str]) -> str:
    return " or ".join(map(repr, words))


def _offline() -> str:
    return f"Without a network only {MICRO!r} and files of yours are there."


def _from_open_clip(name: str, architecture: str, weights: str | None, open_clip: ModuleType) -> ClipModel:
    try:
        model = open_clip.create_model(architecture, weights, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # open_clip raises whatever its libraries do: network, files, missing packages, shapes
        raise ClipError(
            f"CLIP model {name!r} cannot be loaded: {first_line(error)}\n{_offline()} Ways out: weights that you have, "
            f"as 'MODEL=FILE' or 'local-dir:PATH'; or {MICRO!r}."
        ) from error
    preprocessing = model.visual.preprocess_cfg
    size = preprocessing["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ClipError(f"CLIP model {name!r} takes images of {height} x {width} px; sam_gym needs square ones")
    return ClipModel(name, model, tokenizer, height, tuple(preprocessing["mean"]), tuple(preprocessing["std"]))
