"""The feature cache: every kind gives the same features, files are shared, corrupted features are computed anew."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset import ImageSet
from feature_cache import KEY, CachePolicy, FeatureCache, stored_levels
from flags import parse
from methods.synthetic_anomalies import build_corruption
from model import Distiller, Teacher, build_teacher


@pytest.mark.parametrize("cache", ["features", "images"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_cache_gives_the_levels_that_no_cache_gives(
    distiller: Distiller, images: ImageSet, cache: str, workers: int
) -> None:
    order = [3, 0, 6, 1, 5, 2, 4]
    plain = FeatureCache(distiller.teacher, images, CachePolicy("none"))
    cached = FeatureCache(distiller.teacher, images, CachePolicy(cache), batch_size=3, workers=workers)
    assert cached.kind == cache
    for _ in range(2):  # the second epoch reads the cache again
        batches = list(zip(plain.batches(order, 3), cached.batches(order, 3), strict=True))
        assert [len(features.clean[0]) for features, _ in batches] == [3, 3, 1]
        for expected, found in batches:
            assert found.corrupted is None and found.corruption_map is None
            for a, b in zip(expected.clean, found.clean, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_auto_takes_the_first_cache_that_fits(distiller: Distiller, images: ImageSet) -> None:
    gib = 2**30
    features = 4 * 7 * sum(level[0].numel() for level in distiller.teacher(torch.zeros(1, 3, 64, 64)))
    pixels = 7 * 3 * 64 * 64
    for budget, kind in ((features, "features"), (features - 1, "images"), (pixels - 1, "none")):
        assert FeatureCache(distiller.teacher, images, CachePolicy("auto", budget / gib)).kind == kind


@pytest.mark.parametrize("cache", ["features", "images", "none"])
def test_every_cache_gives_the_same_corrupted_features(distiller: Distiller, images: ImageSet, cache: str) -> None:
    corrupt = build_corruption("copy_paste", 0, 64)
    found = []
    for kind in (cache, "none"):
        filled = FeatureCache(distiller.teacher, images, CachePolicy(kind), corrupt=corrupt)
        torch.manual_seed(3)
        found.append(list(filled.batches([2, 0, 1], 2)))
    for ours, theirs in zip(*found, strict=True):
        assert ours.corrupted is not None and theirs.corrupted is not None
        assert ours.corruption_map is not None and ours.corruption_map.shape[1:] == (1, 64, 64)
        for a, b in zip([*ours.clean, *ours.corrupted], [*theirs.clean, *theirs.corrupted], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.corruption_map, theirs.corruption_map) and 0 < ours.corruption_map.mean() < 1


def test_the_corruption_map_is_the_angle_between_the_normalized_colors(distiller: Distiller, images: ImageSet) -> None:
    """It is 0 outside the corrupted pixels; the features are those of the corrupted images."""

    def corrupt(batch: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        corrupted = batch.clone()
        corrupted[:, :, 10:20, 30:50] = 1 - corrupted[:, :, 10:20, 30:50]
        return corrupted

    (features,) = FeatureCache(distiller.teacher, images, corrupt=corrupt).batches([0, 4], 2)
    clean = torch.from_numpy(np.stack([images.image(i) for i in (0, 4)])) / 255
    corrupted = corrupt(clean, np.random.default_rng(0))
    one, other = ((x - distiller.teacher.mean) / distiller.teacher.std for x in (clean, corrupted))
    expected = 1 - torch.nn.functional.cosine_similarity(one, other)
    assert features.corruption_map is not None and features.corrupted is not None
    torch.testing.assert_close(features.corruption_map[:, 0], expected, rtol=1e-4, atol=1e-5)
    outside = features.corruption_map.clone()
    outside[:, :, 10:20, 30:50] = 0
    assert outside.abs().max() < 1e-6
    for found, wanted in zip(features.corrupted, distiller.teacher(corrupted), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return build_teacher("efficientnet_lite0", "random").optimize_for_inference()


def counted(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that the teacher gets from now on."""
    batch_sizes: list[int] = []
    plain = Teacher.forward

    def counting(self: Teacher, pixels: torch.Tensor) -> list[torch.Tensor]:
        batch_sizes.append(len(pixels))
        return plain(self, pixels)

    monkeypatch.setattr(Teacher, "forward", counting)
    return batch_sizes


def levels_of(cache: FeatureCache) -> list[list[torch.Tensor]]:
    return [features.clean for features in cache.batches([4, 0, 2, 1, 3], 2)]


def test_features_in_files_are_those_in_memory_and_are_made_once(
    teacher: Teacher, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CachePolicy("file", folder=tmp_path / "features")
    first, memory = (
        FeatureCache(teacher, images, cache, batch_size=3),
        FeatureCache(teacher, images, CachePolicy("features")),
    )
    batch_sizes = counted(teacher, monkeypatch)
    again = FeatureCache(teacher, images, cache)
    assert batch_sizes == [1]  # one image, to know the shapes
    for expected, *found in zip(levels_of(memory), levels_of(first), levels_of(again), strict=True):
        for level, *others in zip(expected, *found, strict=True):
            assert level.is_contiguous(memory_format=torch.channels_last)
            assert all(other.is_contiguous(memory_format=torch.channels_last) for other in others)
            torch.testing.assert_close(others[0], level, rtol=1e-5, atol=1e-5)
            assert torch.equal(*others)
    (folder,) = (tmp_path / "features").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [KEY, "level0", "level1", "level2"]


@pytest.mark.parametrize(
    "change", ["other image", "another teacher", "cut file", "one bit", "another key", "half made"]
)
def test_features_that_are_not_these_are_made_again(
    teacher: Teacher, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    root = tmp_path / "features"
    cache = CachePolicy("file", folder=root)
    expected = levels_of(FeatureCache(teacher, images, cache))
    (folder,) = root.iterdir()
    if change == "other image":
        image, stat = images.samples[2].image, images.samples[2].image.stat()
        image.with_suffix(".new").write_bytes(images.samples[3].image.read_bytes())
        image.with_suffix(".new").replace(image)
        os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "another teacher":
        teacher = build_teacher("efficientnet_lite0", "random", seed=5)
    elif change == "cut file":
        os.truncate(folder / "level1", 100)
    elif change == "one bit":
        content = bytearray((folder / "level1").read_bytes())
        content[len(content) // 2] ^= 1
        (folder / "level1").write_bytes(content)
    elif change == "another key":
        (folder / KEY).write_text("{}")
    else:
        (folder / KEY).unlink()
    batch_sizes = counted(teacher, monkeypatch)
    found = levels_of(FeatureCache(teacher, images, cache))
    assert sum(batch_sizes) == 1 + len(images)
    same = all(
        torch.equal(a, b) for one, two in zip(expected, found, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert same == (change not in ("another teacher", "other image"))
    assert not list(tmp_path.glob(".*"))


def test_a_fill_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(levels: list[torch.Tensor]) -> None:
        levels[0][0] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored_levels(tmp_path, {"a": 1}, 2, [torch.zeros(1, 3, 4, 4)], fails)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_before_features_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write to a mapped file that the disk has no room for would kill the process."""

    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"GiB are needed.*level0"):
        stored_levels(tmp_path, {"a": 1}, 2, [torch.zeros(1, 3, 4, 4)], lambda levels: pytest.fail("written to"))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / f".features.{process.pid}@{socket.gethostname()[:64]}.partial"
    alive = tmp_path / f".features.{os.getpid()}@{socket.gethostname()[:64]}.partial"
    for folder in (left, alive):
        folder.mkdir()
        (folder / "level0").write_bytes(b"x")
    stored_levels(tmp_path, {"a": 1}, 2, [torch.zeros(1, 3, 4, 4)], lambda levels: None)
    assert not left.exists() and alive.exists()


def test_auto_goes_to_files_where_memory_is_too_small_and_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gib = 2**30
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=12 * gib if folder.exists() else 0))
    assert CachePolicy("auto", 4).choose(4 * gib, gib, False) == "features"
    assert CachePolicy("auto", 4).choose(4 * gib, gib, True) == "images"
    assert CachePolicy("auto", 4, tmp_path / "not" / "yet").choose(5 * gib, gib, True) == "file"
    assert CachePolicy("auto", 4, tmp_path).choose(13 * gib, gib, False) == "images"
    assert CachePolicy("auto", 4, tmp_path).choose(13 * gib, 5 * gib, False) == "none"
    with pytest.raises(ValueError, match="--cache file: needs --cache_dir"):
        parse(["--cache", "file"])


def test_synthetic_anomalies_go_with_features_in_files(teacher: Teacher, images: ImageSet, tmp_path: Path) -> None:
    corrupt = build_corruption("copy_paste", 0, 64)
    cache = FeatureCache(teacher, images, CachePolicy("file", folder=tmp_path), corrupt=corrupt)
    (features, *_) = cache.batches([0, 1, 2], 2)
    assert features.corrupted is not None and len(features.corrupted[0]) == 2
