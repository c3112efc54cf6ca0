"""A small language model that writes reports in the grammar, of image tokens, region tokens, or a marked image.

It is a GPT-2 of about a million parameters with random first weights and the grammar's words as its vocabulary; what
stands before the words are tokens of `sam_gym.reports.tokens`. It needs the extra `reports` (transformers).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_gym._utils.fetching import atomic_path
from sam_gym._utils.naming import unknown
from sam_gym.reports.examples import MOST_REGIONS, TYPES
from sam_gym.reports.language import vocabulary, words_of
from sam_gym.reports.tokens import CELLS, MASK_SIZE, ImageTokens, RegionTokens

IMAGE, MARKS, MASKS, TOKENS = LOOKS = ("image", "marks", "masks", "tokens")
"""What a writer sees: image tokens; those of the image with marks; image tokens and mask tokens; and spatial tokens."""

PADDING, BEGIN, END = "<padding>", "<begin>", "<end>"

MOST_WORDS = 200
"""Words of a report at most."""

NEEDS_EXTRA = "writers of reports need transformers: pip install 'sam_gym[reports]'"


@dataclass(frozen=True)
class WriterSettings:
    """What a writer is.

    Attributes:
        looks: One of `LOOKS`.
        channels: C of SAM's embedding.
        width: Of all tokens.
        layers: Of the GPT-2.
        heads: Of its attention.
        dropout: Of the GPT-2.
    """

    looks: str = TOKENS
    channels: int = 256
    width: int = 128
    layers: int = 5
    heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.looks not in LOOKS:
            raise ValueError(unknown("looks", self.looks, LOOKS))


@dataclass
class Seen:
    """What a writer sees of N images.

    Attributes:
        image: (N, C, k, k) float32 features of the image, or of the one with marks.
        features: (N, R, C) float32 features of regions.
        maps: (N, R, s, s) float32 their masks.
        there: (N, R) bool which regions there are.
    """

    image: Tensor
    features: Tensor
    maps: Tensor
    there: Tensor


def positions(there: Tensor) -> Tensor:
    """(N, L) int64 places of tokens, of which some are not there: those count as none, as `generate` has it too."""
    return (there.long().cumsum(dim=1) - 1).clamp(min=0)


class Writer(nn.Module):
    """A GPT-2 behind tokens of an image and its regions.

    Args:
        settings: See `WriterSettings`.

    Attributes:
        words: The vocabulary; the numbers of words are their places in it.

    Raises:
        ImportError: transformers is not there; says which extra.
    """

    def __init__(self, settings: WriterSettings) -> None:
        super().__init__()
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError as error:
            raise ImportError(NEEDS_EXTRA) from error
        self.settings = settings
        self.words = [PADDING, BEGIN, END, *vocabulary(TYPES)]
        self._numbers = {word: number for number, word in enumerate(self.words)}
        self.image = ImageTokens(settings.channels, settings.width)
        self.regions: RegionTokens | None = None
        if settings.looks in (MASKS, TOKENS):
            self.regions = RegionTokens(settings.channels, settings.width, MASK_SIZE, spatial=settings.looks == TOKENS)
        before = CELLS**2 + (0 if self.regions is None else MOST_REGIONS * self.regions.each)
        config = GPT2Config(
            vocab_size=len(self.words), n_positions=before + MOST_WORDS, n_embd=settings.width, n_layer=settings.layers,
            n_head=settings.heads, resid_pdrop=settings.dropout, embd_pdrop=settings.dropout,
            attn_pdrop=settings.dropout, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        self.model: Any = GPT2LMHeadModel(config)

    @property
    def parameters_in_all(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def numbers_of(self, texts: Sequence[str]) -> Tensor:
        """(N, L) int64: texts as numbers of words, between begin and end, padded.

        Raises:
            ValueError: A word is not in the language.
        """
        rows = [[BEGIN, *words_of(text), END] for text in texts]
        if strange := [word for row in rows for word in row if word not in self._numbers]:
            raise ValueError(f"the word {strange[0]!r} is not in the language of this writer")
        longest = max(map(len, rows))
        numbers = [[self._numbers[word] for word in row] + [0] * (longest - len(row)) for row in rows]
        return torch.tensor(numbers, device=self.model.device)

    def text_of(self, numbers: Sequence[int]) -> str:
        """Numbers of words, up to the end, as a text."""
        words = []
        for number in numbers:
            if self.words[number] == END:
                break
            if number > 2:
                words.append(self.words[number])
        text = " ".join(words).replace(" .", ".")
        return ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))

    def before(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Tokens (N, P, width) that stand before the words, and which of them there are, (N, P) bool."""
        tokens = self.image(seen.image)
        there = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if self.regions is not None:
            tokens = torch.cat([tokens, self.regions(seen.features, seen.maps)], dim=1)
            there = torch.cat([there, seen.there.repeat_interleave(self.regions.each, dim=1)], dim=1)
        return tokens, there

    def loss(self, seen: Seen, texts: Sequence[str]) -> Tensor:
        """Mean cross-entropy of the texts' words, scalar."""
        numbers = self.numbers_of(texts)
        tokens, there = self.before(seen)
        embedded = torch.cat([tokens, self.model.transformer.wte(numbers[:, :-1])], dim=1)
        mask = torch.cat([there, numbers[:, :-1] > 0], dim=1)
        logits = self.model(
            inputs_embeds=embedded, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False
        ).logits
        said = logits[:, tokens.shape[1] :]
        return nn.functional.cross_entropy(said.flatten(0, 1), numbers[:, 1:].flatten(), ignore_index=0)

    @torch.no_grad()
    def write(self, seen: Seen) -> list[str]:
        """A report of each image, the likeliest word each time."""
        self.eval()
        tokens, there = self.before(seen)
        begin = torch.ones(len(tokens), 1, dtype=torch.int64, device=tokens.device)
        embedded = torch.cat([tokens, self.model.transformer.wte(begin)], dim=1)
        mask = torch.cat([there, begin > 0], dim=1).long()
        said = self.model.generate(
            inputs_embeds=embedded, attention_mask=mask, max_new_tokens=MOST_WORDS - 1, do_sample=False
        )
        return [self.text_of(row) for row in said.tolist()]

    def save(self, file: Path) -> None:
        """Weights as safetensors; the settings are in their metadata."""
        from safetensors.torch import save_model

        with atomic_path(file) as path:
            save_model(self, str(path), metadata={"writer": json.dumps(asdict(self.settings))})

    @classmethod
    def load(cls, file: Path) -> Writer:
        """A saved writer.

        Raises:
            ValueError: The file is no writer.
        """
        from safetensors import safe_open
        from safetensors.torch import load_model

        with safe_open(str(file), "pt") as opened:
            metadata = opened.metadata() or {}
        if "writer" not in metadata:
            raise ValueError(f"{file} holds no writer of reports: it has no settings of one")
        writer = cls(WriterSettings(**json.loads(metadata["writer"])))
        load_model(writer, str(file))
        return writer.eval()
