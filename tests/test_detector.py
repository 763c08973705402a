"""A detector keeps the images' order, applies the run's scoring, and says why a metric is undefined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detector as detector_module
from config import Config
from dataset import ImageSet, Sample
from detector import Detector
from model import Distiller
from scoring.anomaly_map import anomaly_map, image_score


def detect(distiller: Distiller, **changes: Any) -> Detector:
    """A detector for images of 64 pixels around a network that was not trained."""
    return Detector(Config(image_size=64, **({"workers": 0} | changes)), distiller)


def anomalous_from(images: ImageSet, count: int) -> ImageSet:
    """The images, the first `count` of them called anomalous, without masks."""
    samples = [replace(sample, anomalous=i < count, defect="x") for i, sample in enumerate(images.samples)]
    return ImageSet(samples, images.size)


def test_predictions_come_in_the_order_of_the_images(
    distiller: Distiller, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector_module, "BATCH_PIXELS", 3 * 64**2)
    batches = list(detect(distiller, workers=2).score_batches(images))
    assert [len(scores) for scores, _ in batches] == [3, 3, 1]
    maps = np.concatenate([maps for _, maps in batches])
    scores = np.concatenate([scores for scores, _ in batches])
    with torch.no_grad():
        for i in range(len(images)):
            alone = anomaly_map(distiller.eval()(torch.from_numpy(images.image(i)[None])), 64)
            np.testing.assert_allclose(maps[i], alone[0].numpy(), atol=1e-5)
            assert scores[i] == pytest.approx(float(image_score(alone)), abs=1e-5)


def test_scoring_options_reach_map_and_score(distiller: Distiller, images: ImageSet) -> None:
    ((scores, maps),) = detect(distiller, score_num=10).score_batches(images)
    highest = np.sort(maps.reshape(7, -1), axis=1)[:, -10:].mean(axis=1)
    np.testing.assert_allclose(scores, highest, rtol=1e-6)
    ((_, coarse),) = detect(distiller, levels=(1, 2)).score_batches(images)
    ((_, fine),) = detect(distiller, levels=(0,)).score_batches(images)
    np.testing.assert_allclose(coarse + fine, maps, atol=1e-5)
    ((_, product),) = detect(distiller, anomaly_map="multiply").score_batches(images)
    assert not np.allclose(product, maps)


def test_without_masks_pixel_metrics_are_undefined_and_image_metrics_stand(
    distiller: Distiller, images: ImageSet
) -> None:
    report = detect(distiller).evaluate(anomalous_from(images, 3)).report
    metrics = report.defined()
    assert metrics["image_auroc"] is not None
    assert metrics["pixel_auroc"] is None and "mask" in report.reasons["pixel_auroc"]


def test_only_normal_images_leave_every_metric_undefined_with_its_reason(
    distiller: Distiller, images: ImageSet
) -> None:
    report = detect(distiller).evaluate(images).report
    assert set(report.defined().values()) == {None}
    assert set(report.reasons) == set(report.values)


def test_an_unreadable_image_is_named(distiller: Distiller, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(ValueError, match=r"broken\.png"):
        list(detect(distiller).score_batches(ImageSet([Sample(broken, False, "good")], 64)))


def test_image_metrics_alone_say_that_the_others_were_not_asked_for(distiller: Distiller, images: ImageSet) -> None:
    report = detect(distiller, seg=False).evaluate(anomalous_from(images, 3)).report
    assert report.defined()["image_auroc"] is not None
    assert report.reasons["aupro"] == "pixel metrics were not asked for"


def test_standardized_maps_know_the_normal_images_alone(distiller: Distiller, images: ImageSet) -> None:
    standardized = detect(distiller, levels=(1, 2), anomaly_map="standardized")
    standardized.fit_map_statistics(images)
    maps = np.concatenate([maps for _, maps in standardized.score_batches(images)])
    assert maps.shape == (7, 64, 64)
    np.testing.assert_allclose(maps.mean(axis=0), 0, atol=1e-3)
    plain = detect(distiller, anomaly_map="add")
    plain.fit_map_statistics(images)
    assert plain.map_statistics is None, "no other map needs them"


def test_refined_scores_are_raised_and_their_maps_are_not(distiller: Distiller, images: ImageSet) -> None:
    ((scores, maps),) = detect(distiller, anomaly_map="mean").score_batches(images)
    ((refined, same),) = detect(distiller, anomaly_map="mean", refine=True).score_batches(images)
    assert np.array_equal(maps, same)
    assert (refined >= scores).all() and (refined > scores).any()


def test_fitting_and_scoring_leave_the_trained_network_as_it_was(distiller: Distiller, images: ImageSet) -> None:
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    detector = detect(distiller, anomaly_map="standardized")
    detector.fit_map_statistics(images)
    detector.fit_color_scale(images)
    detector.evaluate(anomalous_from(images, 3))
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
