"""Mitochondria of the procedural generator: the sections of `synthetic-em`, with other labels.

It is what `vnc-mitochondria` falls back on, and what tests of whole-class targets run on. As with `synthetic-em`, no
number measured on it says anything about real tissue.
"""

from __future__ import annotations

from pathlib import Path

from sam_gym.data import synthetic
from sam_gym.data.spec import DatasetSpec, Sample

NAME = "synthetic-mitochondria"


def read_section(_root: Path, image_id: str) -> Sample:
    """Image and mitochondria of one section, uint8 (256, 256, 3) and int32 (256, 256); its id ends in its seed."""
    section = synthetic.generate(int(image_id.rsplit("-", 1)[1]))
    return section.image, section.mitochondria


SPEC = DatasetSpec(
    name=NAME,
    title="Procedural electron-microscopy-like sections, mitochondria as instances",
    licence=synthetic.SPEC.licence,
    citation="sam_gym.data.synthetic",
    splits=synthetic.SPEC.splits,
    read=read_section,
    text="mitochondrion",
)
