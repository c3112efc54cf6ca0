"""Where sessions on a folder of images are kept, so that nothing is lost and nobody overwrites anybody.

    <out>/sessions/<image>.json    what was done, see `Session.to_json`; a demonstration that an agent can learn from
    <out>/sessions/<image>.claim   who works on the image now
    <out>/labels/<image>.png       16-bit integers: 0, or the id of an accepted object
    <out>/coco.json                all accepted objects, as the COCO data set has them
    <out>/log.csv                  a row for each: as proposed or corrected, clicks, seconds, by whom

All files are replaced as a whole, so that a crash leaves the old one or the new one. It makes no masks.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sam_gym._utils.fetching import atomic_path, write_json
from sam_gym.annotate.segmenting import Segment
from sam_gym.annotate.session import Session
from sam_gym.data.images import SUFFIXES

CLAIM_SECONDS = 600.0
"""An image that nobody touched for so long may be taken over."""

LOG_COLUMNS = (
    "image", "object", "class", "annotator", "began", "how", "clicks_person", "clicks_agent", "boxes_moved", "undone",
    "seconds", "area", "predicted_iou", "saved",
)  # fmt: skip


class Taken(ValueError):
    """Somebody else works on the image."""


class SessionFolder:
    """A folder of images, and one of what was made of them.

    Args:
        images: The images; those of subfolders are included.
        out: Where to write; made if it is not there. Images in it are left out.
        kinds: Names of classes 1, 2, ...

    Raises:
        ValueError: There is no image, or two would have one label image.
    """

    def __init__(self, images: Path, out: Path, kinds: Sequence[str] = ("object",)) -> None:
        self.images, self.out, self.kinds = images, out, tuple(kinds)
        self._tables: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}
        names = self.names()
        if not names:
            raise ValueError(f"{images} and its subfolders hold no image file ({', '.join(SUFFIXES)})")
        targets: dict[Path, str] = {}
        for name in names:
            if (other := targets.setdefault(self.label_path(name), name)) != name:
                raise ValueError(f"{other} and {name} would have one label image: rename one of them")

    def names(self) -> list[str]:
        """The images, as paths below the folder with forward slashes, sorted. Links out of the folder do not count."""
        folder, out = self.images.resolve(), self.out.resolve()
        found = []
        for path in self.images.rglob("*"):
            real = path.resolve()
            if path.suffix.lower() in SUFFIXES and path.is_file() and real.is_relative_to(folder):
                if not real.is_relative_to(out):
                    found.append(path.relative_to(self.images).as_posix())
        return sorted(found)

    def path(self, name: str) -> Path:
        """The file of an image; ValueError for whatever is no image of the folder."""
        if name not in self.names():
            raise ValueError(f"there is no image {name!r} in the folder")
        return self.images / name

    def label_path(self, name: str) -> Path:
        """Where the label image of an image lies."""
        return self.out / "labels" / PurePosixPath(name).with_suffix(".png")

    def session_path(self, name: str) -> Path:
        """Where the session of an image lies."""
        return self.out / "sessions" / f"{name}.json"

    # ------------------------------------------------------------------------- claims

    def claim(self, name: str, token: str, who: str) -> None:
        """Take an image for oneself, or go on with it.

        Args:
            name: The image.
            token: What nobody else knows.
            who: What others are told.

        Raises:
            Taken: Somebody else has it, and was busy in the last `CLAIM_SECONDS`.
        """
        self._check_claim(name, token)
        write_json(self._claim_path(name), {"token": token, "who": who})

    def release(self, name: str, token: str) -> None:
        """Give an image back, if it is one's own."""
        if (there := self._claim(name)) is not None and there["token"] == token:
            self._claim_path(name).unlink(missing_ok=True)

    def claimed_by(self, name: str, token: str = "") -> str | None:
        """Who works on an image, unless it is oneself; None if nobody does."""
        there = self._claim(name)
        return None if there is None or there["token"] == token else str(there["who"])

    def _check_claim(self, name: str, token: str) -> None:
        if (who := self.claimed_by(name, token)) is not None:
            raise Taken(f"{who or 'somebody else'} works on {name}: take another image, or wait until they are done")

    def _claim(self, name: str) -> dict[str, Any] | None:
        try:
            if time.time() - self._claim_path(name).stat().st_mtime > CLAIM_SECONDS:
                return None
            return json.loads(self._claim_path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def _claim_path(self, name: str) -> Path:
        return self.out / "sessions" / f"{name}.claim"

    # -------------------------------------------------------------------------- files

    def stored(self, name: str) -> dict[str, Any] | None:
        """The session of an image, as it was stored; None if there is none."""
        try:
            return json.loads(self.session_path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def save(self, session: Session, token: str, who: str, *, masks: bool) -> None:
        """Store a session; with `masks` its label image, and the tables of the folder, too.

        Raises:
            Taken: Somebody else took the image over meanwhile; nothing is written.
        """
        name = session.name
        self._check_claim(name, token)
        content = {**session.to_json(), "annotator": who}
        if masks:
            content["accepted"] = self._accepted(session, who)
        elif (before := self.stored(name)) is not None:
            content["accepted"] = before.get("accepted", [])
        write_json(self.session_path(name), content)
        os.utime(self._claim_path(name))
        if masks:
            labels = session.export().labels
            with atomic_path(self.label_path(name)) as temporary:
                Image.fromarray(labels).save(temporary, "PNG")
            self.write_tables()

    def _accepted(self, session: Session, who: str) -> list[dict[str, Any]]:
        """What tables say of the accepted objects; what was said of an unchanged one before stays."""
        export, now = session.export(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        before = {one["object"]: one for one in (self.stored(session.name) or {}).get("accepted", [])}
        found = []
        for number, row in export.rows.items():
            segment = export.segments[number]
            one = {
                "object": number, **row, "annotator": who, "saved": now,
                "prompts": json.loads(json.dumps(export.objects[number].prompts)),
                "bbox": [segment.left, segment.top, segment.mask.shape[1], segment.mask.shape[0]],
                "counts": coco_counts(segment, session.size),
            }  # fmt: skip
            old = before.get(number, {})
            if old.get("prompts") == one["prompts"] and old.get("kind") == one["kind"]:
                one |= {"annotator": old["annotator"], "saved": old["saved"], "seconds": old["seconds"]}
            found.append(one)
        return found

    def overview(self, token: str = "") -> list[dict[str, Any]]:
        """Each image with how many objects are accepted there, and who else works on it."""
        tables = {name: table for name, table in self._each_table()}
        return [
            {
                "name": name,
                "accepted": len(tables.get(name, {}).get("accepted", [])),
                "taken": self.claimed_by(name, token),
            }
            for name in self.names()
        ]

    def write_tables(self) -> None:
        """Write coco.json and log.csv anew, of all sessions."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        for number, (name, table) in enumerate(self._each_table(), start=1):
            height, width = table["size"]
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for one in table["accepted"]:
                counts = {"size": [height, width], "counts": one["counts"]}
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "category_id": one["kind"], "iscrowd": 0,
                    "bbox": one["bbox"], "area": one["area"], "segmentation": counts,
                })  # fmt: skip
                rows.append({**one, "image": name, "class": self._kind(one["kind"])})
        used = max([len(self.kinds), *(one["category_id"] for one in annotations)])
        categories = [{"id": kind, "name": self._kind(kind)} for kind in range(1, used + 1)]
        coco = {"images": images, "categories": categories, "annotations": annotations}
        with atomic_path(self.out / "coco.json") as temporary:
            temporary.write_text(json.dumps(coco) + "\n", encoding="utf-8")
        with atomic_path(self.out / "log.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, LOG_COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def _kind(self, kind: int) -> str:
        return self.kinds[kind - 1] if kind <= len(self.kinds) else f"class {kind}"

    def _each_table(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each image that has a session, with its size and accepted objects. Files that did not change are not read."""
        for name in self.names():
            try:
                status = self.session_path(name).stat()
            except FileNotFoundError:
                continue
            version = status.st_mtime_ns, status.st_size
            if name not in self._tables or self._tables[name][0] != version:
                stored = self.stored(name) or {}
                table = {"size": stored["size"], "accepted": stored.get("accepted", [])}
                self._tables[name] = version, table
            yield name, self._tables[name][1]


def coco_counts(segment: Segment, size: tuple[int, int]) -> list[int]:
    """A mask as COCO's runs: how many pixels in a row are 0, then 1, then 0, ..., column by column of the image."""
    mask: NDArray[np.uint8] = np.zeros(size, np.uint8)
    segment.paint(mask, 1)
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=0))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return runs[:-1] if runs[-1] == 0 else runs
