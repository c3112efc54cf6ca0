"""`Record`: what one prompter did on one split, object by object, and every number that is computed from it.

`sam_gym.evaluation.run` fills it, `sam_gym.evaluation.comparison` compares records. It is stored as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_gym.evaluation.bootstrap import Interval, bootstrap_mean
from sam_gym.evaluation.metrics import NEVER, prompts_to_reach

RECORD_FORMAT = 3
"""Of stored records. 1 had no `format`, and of each object the IoU curve and the prompts alone; 2 had no returns."""

COLUMNS = ("iou", "prompts", "dice", "boundary_iou", "area", "decodes", "returns")
"""What is kept of each object beside its case."""

THRESHOLDS = (0.80, 0.85, 0.90)
"""k of NoC@k."""


@dataclass(frozen=True)
class EpisodeCase:
    """One fixed episode: image index, object id, cue box in image pixels or None for tasks without one."""

    image: int
    object_id: int
    cue: tuple[float, ...] | None

    def pose(self) -> dict[str, Any]:
        """The reset options that begin it."""
        return {"image": self.image} if self.cue is None else {
            "image": self.image, "object": self.object_id, "cue": self.cue,
        }  # fmt: skip


GAIN_KEYS = {
    "the box alone": "box_only",
    "the given mask": "given_mask",
    "no prompt": "no_prompt",
    "the first clicks": "first_clicks",
}
"""What stored records call the gain over what they start from."""


@dataclass
class Record:
    """What one prompter did on one split.

    Decimal numbers of objects are rounded to 6 digits, so that a stored record equals the one in memory.

    Attributes:
        name: The prompter's name.
        iou: (M, T + 1) float64, IoU after 0..T prompts; after stop the last value is carried on.
        prompts: (M,) int64 prompts given.
        dice: (M,) float64, Dice coefficient of the last mask.
        boundary_iou: (M,) float64, Boundary IoU of the last mask at the image's full resolution.
        area: (M,) int64 pixels in the last mask.
        decodes: (M,) float64, masks that SAM decoded: one of the cue or the first clicks, one for each prompt, and the
            object's share of those that the prompter asked the backend for while it chose actions for all environments.
        returns: (M,) float64, sum of the episode's rewards; `provenance` says which reward.
        cases: The M episodes.
        provenance: What `sam_gym.evaluation.evaluation_provenance` says.
        seconds: Wall-clock time of all M episodes, image encoding included where it had not been done before.
    """

    name: str
    iou: NDArray[np.float64]
    prompts: NDArray[np.int64]
    dice: NDArray[np.float64]
    boundary_iou: NDArray[np.float64]
    area: NDArray[np.int64]
    decodes: NDArray[np.float64]
    returns: NDArray[np.float64]
    cases: list[EpisodeCase]
    provenance: dict[str, Any]
    seconds: float

    @property
    def curve(self) -> NDArray[np.float64]:
        """(T + 1,) mean IoU after 0..T prompts."""
        return self.iou.mean(axis=0)

    @property
    def start(self) -> str:
        """What the gain is over: the mask that episodes begin with."""
        if self.cases[0].cue is not None:
            return "the given mask" if "mask_error" in self.provenance else "the box alone"
        return "no prompt" if self.provenance.get("first_clicks", "nothing") == "nothing" else "the first clicks"

    @property
    def gain(self) -> Interval:
        """Mean IoU gained over the first mask (see `start`), with the paired bootstrap interval."""
        return bootstrap_mean(self.iou[:, -1] - self.iou[:, 0])

    @property
    def failures(self) -> dict[str, int]:
        """Objects on which it failed, by kind; one object may count in both.

        "below_start": the last mask's IoU is lower than that of the first. "empty_masks": the last mask has no
        pixel.
        """
        below = self.iou[:, -1] < self.iou[:, 0]
        return {"below_start": int(below.sum()), "empty_masks": int((self.area == 0).sum())}

    def noc(self, threshold: float) -> dict[str, Any]:
        """NoC@k, prompts until IoU k, with what was never reached kept apart.

        Returns:
            "reached" and "never": objects that reach k, and those that do not; "mean_of_reached": mean prompts of the
            former, None without any; "mean": over all objects, with T for those that never do, as RITM counts them
            (Sofiiuk et al. 2022). 0 prompts means that the box alone is enough.
        """
        needed = prompts_to_reach(self.iou, threshold)
        reached = needed[needed != NEVER]
        return {
            "reached": len(reached),
            "never": len(needed) - len(reached),
            "mean_of_reached": float(reached.mean()) if len(reached) else None,
            "mean": float(np.where(needed == NEVER, self.iou.shape[1] - 1, needed).mean()),
        }

    def measures(self) -> dict[str, Any]:
        """All numbers about the objects together, JSON-able; they follow from `COLUMNS` (the gain's name: `start`)."""
        return {
            "objects": len(self.iou),
            "iou_after_prompts": [round(float(v), 6) for v in self.curve],
            "final_iou": asdict(bootstrap_mean(self.iou[:, -1])),
            f"gain_over_{GAIN_KEYS[self.start]}": asdict(self.gain),
            "final_dice": asdict(bootstrap_mean(self.dice)),
            "final_boundary_iou": asdict(bootstrap_mean(self.boundary_iou)),
            "noc": {f"{threshold:.0%}": self.noc(threshold) for threshold in THRESHOLDS},
            "failures": self.failures,
            "mean_prompts": float(self.prompts.mean()),
            "mean_decodes": float(self.decodes.mean()),
            "mean_return": float(self.returns.mean()),
        }

    def summary(self) -> dict[str, Any]:
        """The numbers of a table row and where they come from, JSON-able."""
        return {"name": self.name, **self.measures(), "seconds": self.seconds, **self.provenance}

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able: what was measured of all objects, where it comes from, and each object."""
        objects = [
            {**asdict(case), **{name: getattr(self, name)[row].tolist() for name in COLUMNS}}
            for row, case in enumerate(self.cases)
        ]
        return {
            "format": RECORD_FORMAT, "name": self.name, "seconds": self.seconds, "provenance": self.provenance,
            "measures": self.measures(), "objects": objects,
        }  # fmt: skip

    @classmethod
    def merge(cls, parts: Sequence[Record], provenance: Mapping[str, Any], seconds: float) -> Record:
        """The record of several parts, one after the other.

        Args:
            parts: Of one prompter; at least one.
            provenance: Of the whole, as `sam_gym.evaluation.evaluation_provenance` has it.
            seconds: Of the whole.

        Raises:
            ValueError: A part is of other data, another SAM, other rules or another prompter than the whole.
        """
        for part in parts:
            for name, value in provenance.items():
                if name != "episode_list" and part.provenance.get(name) != value:
                    raise ValueError(f"a part is of another {name}: {part.provenance.get(name)!r}, not {value!r}")
        return cls(
            parts[0].name,
            cases=[case for part in parts for case in part.cases],
            provenance=dict(provenance),
            seconds=seconds,
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS},
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Record:
        """The record that `to_json` stored; its measures are not read but follow from its objects.

        Raises:
            ValueError: It is of another format.
        """
        if not is_record(stored):
            found = stored.get("format", 1)
            raise ValueError(f"this record is of format {found}, read is {RECORD_FORMAT}: evaluate its prompter anew")
        objects = stored["objects"]
        return cls(
            stored["name"],
            cases=[EpisodeCase(o["image"], o["object_id"], o["cue"] and tuple(o["cue"])) for o in objects],
            provenance=dict(stored["provenance"]),
            seconds=stored["seconds"],
            **{name: np.array([o[name] for o in objects]) for name in COLUMNS},
        )


def is_record(stored: Mapping[str, Any]) -> bool:
    """Whether it is a stored record of the present format."""
    return stored.get("format") == RECORD_FORMAT
