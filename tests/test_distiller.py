"""Laws of the whole: counts, shapes, gradients, what skips do and what they leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import count_parameters, random_images

from engine import compute_losses
from methods import SKIPS, VARIANTS, Recipe, TeacherFeatures, Term, build_distiller
from methods.build import check_parts
from methods.synthetic_anomalies import build_corruption
from model import TEACHERS, Skip, build_teacher
from model.projection import Projection
from scoring.anomaly_map import cosine_distance

# published counts, less what the published bottleneck never calls
LIVE = {
    "wide_res50": (58_885_120, 24_917_504),
    "res50": (39_222_272 - 8_392_704, 15_821_824),
    "res34": (16_925_952 - 525_312, 5_770_624),
    "res18": (12_205_312 - 525_312, 3_703_168),
}
NARROW = "efficientnet_lite0"
LARGE = ("wide_res50", "res50", "res34")
SLOW_AND_QUICK = [pytest.param(net, marks=pytest.mark.slow) if net in LARGE else net for net in TEACHERS]


def build(variant="sk_rd4ad", net="res18", seed=0, **changes):
    torch.manual_seed(seed)
    recipe = replace(VARIANTS[variant], **changes)
    return build_distiller(recipe, build_teacher(net, weights="random")), recipe


def teacher_features(distiller, recipe, images):
    """The teacher's features of the images, and of corrupted ones where the recipe has a corruption."""
    images = images / 255
    clean = distiller.teacher(images)
    if recipe.corruption is None:
        return TeacherFeatures(clean)
    corrupted = build_corruption(recipe.corruption, 0, images.shape[-1])(images, np.random.default_rng(0))
    corruption_map = cosine_distance(distiller.teacher.normalize(corrupted), distiller.teacher.normalize(images))
    return TeacherFeatures(clean, distiller.teacher(corrupted), corruption_map[:, None])


def loss_of(distiller, recipe, features):
    return compute_losses(distiller, features, recipe)["loss"]


def levels_of(pairs):
    return [student for _, student in pairs]


def shapes(net, side, batch):
    channels = build_teacher(net, weights="random").channels
    return [(batch, c, side // stride, side // stride) for c, stride in zip(channels, (4, 8, 16), strict=True)]


@pytest.mark.parametrize("net", SLOW_AND_QUICK)
def test_pairs_have_the_teacher_s_shapes_finest_first(net):
    distiller, _ = build(net=net)
    targets = distiller.teacher(random_images())
    pairs = distiller(random_images())
    assert [tuple(student.shape) for student in levels_of(pairs)] == shapes(net, side=64, batch=2)
    assert all(torch.equal(teacher, target) for (teacher, _), target in zip(pairs, targets, strict=True))
    embedding = distiller.bottleneck(targets)
    assert embedding.shape == (2, 2 * distiller.teacher.channels[2], 2, 2)
    if net in LIVE:
        assert (count_parameters(distiller.bottleneck), count_parameters(distiller.student)) == LIVE[net]


@pytest.mark.slow
def test_wide_res50_at_256_takes_a_step():
    distiller, recipe = build(net="wide_res50")
    features = teacher_features(distiller, recipe, random_images(side=256, batch=1))
    assert [tuple(level.shape) for level in features.clean] == shapes("wide_res50", side=256, batch=1)
    loss = loss_of(distiller.train(), recipe, features)
    loss.backward()
    torch.optim.SGD(distiller.trainable(), lr=1e-3).step()
    assert loss_of(distiller, recipe, features) < loss


@pytest.mark.parametrize(
    ("net", "changes"),
    [
        ("res18", {}),
        pytest.param("res50", {}, marks=pytest.mark.slow),
        (NARROW, {}),
        (NARROW, {"student_width": (16, 24, 32), "student_blocks": 2}),
    ],
)
def test_zeroed_skips_equal_rd4ad_with_the_same_weights(net, changes):
    plain, _ = build("rd4ad", net, **changes)
    skipping, _ = build("sk_rd4ad", net, seed=7, **changes)
    skipping.load_trained_state(plain.trained_state())
    targets = plain.teacher(random_images())
    embedding = plain.bottleneck(targets)
    nothing = [torch.zeros_like(target) for target in targets]
    for ours, theirs in zip(plain.student(embedding, targets), skipping.student(embedding, nothing), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(plain.student(embedding, targets)[0], skipping.student(embedding, targets)[0])


@pytest.mark.parametrize("net", ["res18", NARROW])
def test_each_skip_moves_the_levels_below_it_and_no_other(net):
    start, _ = build("rd4ad", net)
    found = {}
    for name, skips in SKIPS.items():
        distiller = build_distiller(Recipe(skips=skips), start.teacher).eval()
        distiller.load_trained_state(start.trained_state())
        found[name] = levels_of(distiller(random_images()))

    def same(one, other):
        return [torch.equal(a, b) for a, b in zip(found[one], found[other], strict=True)]

    assert same("none", "E2") == [False, True, True]
    assert same("none", "E3") == [False, False, True]
    assert same("both", "E3") == [False, True, True]
    assert same("none", "both") == [False, False, True]


@pytest.mark.parametrize("net", ["res18", "res50"])
def test_the_skips_are_the_published_ones(net):
    """D3 = stage1(phi), D2 = stage2(relu(D3 + E3)), D1 = stage3(relu(D2 + E2)), each compared before the addition."""
    distiller, _ = build(net=net)
    distiller.eval()
    e1, e2, e3 = distiller.teacher(random_images())
    stage3, stage2, stage1 = distiller.student.stages
    d3 = stage1(distiller.bottleneck([e1, e2, e3]))
    d2 = stage2(F.relu(d3 + e3))
    d1 = stage3(F.relu(d2 + e2))
    for found, wanted in zip(levels_of(distiller(random_images())), (d1, d2, d3), strict=True):
        assert torch.equal(found, wanted)


def test_a_signed_teacher_s_student_can_be_negative_and_a_resnet_s_cannot():
    narrow, resnet = build(net=NARROW)[0], build(net="res18")[0]
    assert narrow.teacher.signed and not resnet.teacher.signed
    assert all((level < 0).float().mean() > 0.1 for level in levels_of(narrow(random_images())))
    assert all((level >= 0).all() for level in levels_of(resnet(random_images())))


def test_the_recipe_sets_a_narrow_student_s_width_and_depth():
    plain, wide, deep = (
        build(net=NARROW, **changes)[0]
        for changes in ({}, {"student_width": (64, 128, 256)}, {"student_width": (24, 40, 112), "student_blocks": 3})
    )
    assert count_parameters(plain.bottleneck) + count_parameters(plain.student) == 1_688_032
    assert count_parameters(wide.bottleneck) + count_parameters(wide.student) > 3 * 1_688_032
    assert [len(stage) for stage in plain.student.stages] == [2, 2, 2]
    assert [len(stage) for stage in deep.student.stages] == [4, 4, 4] and len(deep.bottleneck.embed) == 3
    assert [tuple(level.shape) for level in levels_of(wide(random_images()))] == shapes(NARROW, side=64, batch=2)
    with pytest.raises(ValueError, match="res18 is a ResNet, whose student is fixed"):
        build(net="res18", student_width=(64, 128, 256))
    with pytest.raises(ValueError, match="res18 is a ResNet, whose student is fixed"):
        build(net="res18", student_blocks=2)


def test_the_published_finest_stage_is_the_longest():
    assert [len(stage) for stage in build(net="res34")[0].student.stages] == [6, 4, 3]


def test_the_same_seed_builds_the_same_parts():
    first, again, other = build(seed=3)[0], build(seed=3)[0], build(seed=4)[0]
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.student.stages[0][0].conv1.weight, other.student.stages[0][0].conv1.weight)


def test_convolutions_start_kaiming_normal_by_fan_out():
    distiller, _ = build(net="res50")
    for layer in (
        distiller.bottleneck.fusion.reduce0[0],
        distiller.student.stages[0][1].conv2,
        distiller.bottleneck.embed[0].conv2,
    ):
        wanted = (2 / (layer.out_channels * layer.kernel_size[0] ** 2)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(wanted, rel=0.02)
    up = distiller.student.stages[0][0].conv2  # transposed: PyTorch's own uniform
    assert up.weight.abs().max().item() <= (1 / (up.out_channels * 4)) ** 0.5


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line():
    distiller, state = build()[0], build(net="res34")[0].trained_state()
    with pytest.raises(ValueError, match="the checkpoint's bottleneck does not fit") as caught:
        distiller.load_trained_state(state)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"holds \['student'\], but this model has \['bottleneck', 'student'\]"):
        distiller.load_trained_state({"student": state["student"]})
    with pytest.raises(ValueError, match="it lacks stages.0.0.conv1.weight"):
        short = build()[0].trained_state()
        del short["student"]["stages.0.0.conv1.weight"]
        distiller.load_trained_state(short)


def test_the_named_rows():
    assert VARIANTS["rd4ad"] == Recipe() == Recipe(skips=SKIPS["none"], losses=(Term("cosine"),))
    assert VARIANTS["sk_rd4ad"] == Recipe(SKIPS["both"], (Term("cosine"), Term("consistency", 0.005)))
    assert set(SKIPS["both"]) == {*SKIPS["E3"], *SKIPS["E2"]} == {Skip(source=2, into=1), Skip(source=1, into=0)}


def test_the_published_parameter_counts_of_the_family():
    """RD++'s projection; DRD's bottleneck less its dead 1x1 convolution; anomalib's bottleneck, of inner width 512."""
    assert count_parameters(Projection((256, 512, 1024))) == 15_486_912
    with torch.device("meta"):
        teacher = build_teacher("wide_res50", weights="random")
        drd, anomalib, rd4ad = (build_distiller(VARIANTS[name], teacher) for name in ("drd", "rd_anomalib", "rd4ad"))
    assert count_parameters(drd.bottleneck) == 98_737_152 - 8_392_704
    for distiller, width in ((anomalib, 512), (rd4ad, 1024)):
        sizes = {name: value.shape for name, value in distiller.bottleneck.named_parameters()}
        assert [sizes[f"embed.{block}.conv2.weight"] for block in range(3)] == [(width, width, 3, 3)] * 3
    assert count_parameters(anomalib.student) == count_parameters(rd4ad.student)
    assert len(build("rd_anomalib", "res34")[0].bottleneck.embed) == 2


def test_a_masked_student_hides_in_training_only_and_the_next_level_reads_what_was_there():
    hidden, recipe = build("masked", "res18", mask_rate=0.5)
    plain, _ = build("masked", "res18", mask_rate=0.0)
    plain.load_trained_state(hidden.trained_state())
    targets = hidden.teacher(random_images())
    for ours, theirs in zip(hidden.eval()(random_images()), plain.eval()(random_images()), strict=True):
        assert torch.equal(ours[1], theirs[1])
    for part in (hidden, plain):
        part.train()
        for module in part.modules():  # batch norms that depend on nothing but their input
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    embedding = hidden.bottleneck(targets)
    first, second = hidden.student(embedding, targets), hidden.student(embedding, targets)
    assert not torch.equal(first[0], second[0])
    # without generation the stages alone are deterministic: nothing hidden reaches the next level
    for student in (hidden.student, plain.student):
        student.generation = torch.nn.ModuleList()
    for ours, theirs in zip(hidden.student(embedding, targets), plain.student(embedding, targets), strict=True):
        assert torch.equal(ours, theirs)


def test_mrkd_also_hides_in_scoring_and_repeats_itself():
    distiller, recipe = build("mrkd", NARROW)
    shown = build_distiller(replace(recipe, mask_in_scoring=False), distiller.teacher)
    shown.load_trained_state(distiller.trained_state())
    first, again = distiller.eval()(random_images()), distiller(random_images())
    for (_, one), (_, two), (_, other) in zip(first, again, shown.eval()(random_images()), strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


def test_the_attention_is_a_switch_each():
    for changes, kinds in (({}, ["SCConv", "BatchNorm2d", "ReLU", "SimAM"]), ({"scconv": False}, ["SimAM"])):
        distiller, _ = build("masked", NARROW, **changes)
        assert [type(part).__name__ for part in distiller.bottleneck.attention] == kinds
    off, _ = build("masked", NARROW, scconv=False, simam=False, fmm=False)
    assert len(off.bottleneck.attention) == 0 and len(off.student.generation) == 0


def test_drd_s_terms_are_the_published_ones():
    """Written out from the published step: shared networks, noise on the corrupted features, three kinds of loss."""
    distiller, recipe = build("drd", NARROW)
    features = teacher_features(distiller, recipe, random_images())
    torch.manual_seed(5)
    found = compute_losses(distiller.train(), features, recipe)
    distiller, _ = build("drd", NARROW)
    distiller.train()
    f = distiller.student(distiller.bottleneck(features.clean), features.clean)
    torch.manual_seed(5)
    noisy = [level + 0.1 * torch.randn_like(level) for level in features.corrupted]
    fa = distiller.student(distiller.bottleneck(noisy), noisy)

    def individual(a, b):
        return (1 - F.cosine_similarity(a.flatten(2), b.flatten(2), dim=2)).mean()

    distilled = sum(
        (1 - F.cosine_similarity(a, b)).mean() + individual(a, b) for a, b in zip(features.clean, f, strict=True)
    )
    restored = sum(individual(a, b) for a, b in zip(features.clean, fa, strict=True))
    maps = [
        F.interpolate((1 - F.cosine_similarity(a, b))[:, None], 64, mode="bilinear", align_corners=True)
        for a, b in zip(noisy, fa, strict=True)
    ]
    segmented = 0.1 * F.l1_loss(torch.stack(maps).mean(dim=0), features.corruption_map)
    torch.testing.assert_close(found["loss"], distilled + restored + segmented, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(0.1 * found["segmentation_absolute"], segmented, rtol=1e-4, atol=1e-6)


def test_rdpp_s_terms_are_the_published_ones():
    distiller, recipe = build("rdpp", NARROW)
    features = teacher_features(distiller, recipe, random_images(batch=3))
    found = compute_losses(distiller.train(), features, recipe)
    distiller, _ = build("rdpp", NARROW)
    distiller.train()
    clean, noisy = distiller.projection(features.clean), distiller.projection(features.corrupted)
    made = distiller.student(distiller.bottleneck(clean), features.clean)
    distilled = sum(
        (1 - F.cosine_similarity(a.flatten(1), b.flatten(1))).mean() for a, b in zip(features.clean, made, strict=True)
    )
    rebuilt = sum((1 - F.cosine_similarity(a, b)).mean() for a, b in zip(noisy, clean, strict=True))
    away = -torch.ones(3)
    contrast = sum(
        F.cosine_embedding_loss(a.flatten(1), b.flatten(1), away, margin=0.5)
        for a, b in zip(features.corrupted, clean, strict=True)
    )
    expected = distilled + 0.2 * (0.01 * rebuilt + 0.1 * contrast) / 1.11
    torch.testing.assert_close(found["loss"], expected, rtol=1e-4, atol=1e-6)


def test_levels_that_are_not_trained_leave_their_own_stages_alone():
    distiller, recipe = build("rd4ad", NARROW, train_levels=(2,))
    loss_of(distiller.train(), recipe, teacher_features(distiller, recipe, random_images())).backward()
    silent = {k for k in range(3) if all(p.grad is None for p in distiller.student.stages[k].parameters())}
    assert silent == {0, 1}


def test_recipes_and_skips_that_cannot_be_are_refused():
    for source, into in ((2, 0), (2, 2), (0, 1), (1, 1)):
        with pytest.raises(ValueError, match=f"no such skip: Skip\\(source={source}, into={into}\\)"):
            Skip(source, into)
    with pytest.raises(ValueError, match="found cosin$"):
        check_parts(Recipe(losses=(Term("cosine"), Term("cosin"))))
    with pytest.raises(ValueError, match="denoising_cosine needs corrupted images"):
        check_parts(Recipe(losses=(Term("cosine", pairs="denoising"),)))
    with pytest.raises(ValueError, match="contrastive_contrast needs a projection"):
        check_parts(Recipe(losses=(Term("contrast", pairs="contrastive"),), corruption="simplex"))
    with pytest.raises(ValueError, match="pairs out of reconstruction, .*; found nothing"):
        check_parts(Recipe(losses=(Term("cosine", pairs="nothing"),)))
    for changes in ({"fusion": "x"}, {"corruption": "x"}, {"train_levels": ()}, {"train_levels": (1, 0)}):
        with pytest.raises(ValueError, match="unknown|--train_levels"):
            check_parts(Recipe(**changes))
    with pytest.raises(ValueError, match="two --train_levels"):
        replace(VARIANTS["sk_rd4ad"], train_levels=(1,))
    with pytest.raises(ValueError, match="found none"):
        check_parts(Recipe(losses=()))
    widths: tuple[tuple[int, ...], ...] = ((24, 40), (24, 0, 112))
    for width in widths:
        with pytest.raises(ValueError, match="three positive numbers"):
            Recipe(student_width=width)
    with pytest.raises(ValueError, match="--student_blocks must be positive"):
        Recipe(student_blocks=0)


def test_a_network_is_not_built_of_parts_that_are_unknown():
    with pytest.raises(ValueError, match="found cosin$"):
        build_distiller(Recipe(losses=(Term("cosin"),)), build_teacher("res18", "random"))
