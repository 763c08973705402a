"""Normal images for a threshold. Images that were trained on, or are tested, are never among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset import ImageSet, Sample
from readers.base import list_images
from readers.contents import content_hashes
from readers.mvtec import read_normals
from run_files import DataRecord
from utils import printable


@dataclass(frozen=True)
class NormalSet:
    """Normal images that a network was not trained on, and where they come from (`scoring.thresholds.SOURCES`)."""

    source: str
    images: ImageSet

    def digest(self, workers: int = 8) -> dict[str, Any]:
        """{"images": count, "sha256": of names and contents}, as an identity holds it of a split."""
        return DataRecord.of({"normal": self.images.samples}, workers=workers).digests().get("normal", {"images": 0})


def read_normal_folder(folder: Path) -> list[Sample]:
    """The images of --calibrate, upright: directly inside, or in its folders of normal images.

    Raises FileNotFoundError.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--calibrate {folder}: no such folder")
    found = list_images(folder) or [sample.image for sample in read_normals(folder)]
    if not found:
        raise FileNotFoundError(f"--calibrate {folder}: no images directly inside or in {folder / 'good'}")
    return [Sample(image, anomalous=False, defect="good", upright=True) for image in found]


def refuse_used(samples: Sequence[Sample], used: Iterable[str], workers: int = 8) -> None:
    """Raises ValueError where some samples have the content of an image that was trained on or is tested.

    `used` are the SHA-256 of such images. Training scores are lower than those of new images, and a threshold from test
    images says nothing of new ones.
    """
    known, paths = set(used), [sample.image for sample in samples]
    hashes = content_hashes(paths, workers=workers)
    found = [path for path in paths if hashes[path] in known]
    if found:
        raise ValueError(
            f"--calibrate: {len(found)} of {len(paths)} images are among the run's own training or test images, the "
            f"first {printable(found[0])}: a threshold needs normal images that the run has not used"
        )


def without_trained(held_out: ImageSet, trained: ImageSet, workers: int = 8) -> ImageSet:
    """The held-out images without those that also lie, byte by byte, among the images that are trained on."""
    hashes = content_hashes([s.image for s in (*held_out.samples, *trained.samples)], workers=workers)
    known = {hashes[sample.image] for sample in trained.samples}
    kept = [sample for sample in held_out.samples if hashes[sample.image] not in known]
    return held_out.like(kept)
