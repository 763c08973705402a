"""Published checkpoints, their structure written out here: names, shapes and what the published networks compute."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from toys import BACKBONES, published_shapes, published_state

from methods import VARIANTS, build_distiller
from model import build_teacher, load_published


def normed(state, name, x):
    parts = [state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *parts)


def run_block(state, name, kind, x, stride=1, up=False):
    def conv(layer, x, **options):
        return F.conv2d(x, state[f"{name}.{layer}.weight"], **options)

    def enlarge(layer, x):
        return F.conv_transpose2d(x, state[f"{name}.{layer}.weight"], stride=2)

    shortcut = x
    if up:
        shortcut = normed(state, f"{name}.upsample.1", enlarge("upsample.0", x))
    elif f"{name}.downsample.0.weight" in state:
        shortcut = normed(state, f"{name}.downsample.1", conv("downsample.0", x, stride=stride))
    if kind == "bottleneck":
        out = F.relu(normed(state, f"{name}.bn1", conv("conv1", x)))
        out = enlarge("conv2", out) if up else conv("conv2", out, stride=stride, padding=1)
        out = conv("conv3", F.relu(normed(state, f"{name}.bn2", out)))
        return F.relu(normed(state, f"{name}.bn3", out) + shortcut)
    out = enlarge("conv1", x) if up else conv("conv1", x, stride=stride, padding=1)
    out = conv("conv2", F.relu(normed(state, f"{name}.bn1", out)), padding=1)
    return F.relu(normed(state, f"{name}.bn2", out) + shortcut)


def published_forward(net, checkpoint, levels, skips):
    """What the published bottleneck and decoder compute, in evaluation mode, finest level first."""
    kind, _, _, depth, counts = BACKBONES[net]
    bn, decoder = checkpoint["bn"], checkpoint["decoder"]
    e1, e2, e3 = levels

    def halve(number, x):
        return F.relu(normed(bn, f"bn{number}", F.conv2d(x, bn[f"conv{number}.weight"], stride=2, padding=1)))

    x = torch.cat([halve(2, halve(1, e1)), halve(3, e2), e3], 1)
    for index in range(depth):
        x = run_block(bn, f"bn_layer.{index}", kind, x, stride=2 if index == 0 else 1)
    made = []
    for layer, blocks in enumerate(counts, start=1):
        if skips and layer > 1:
            x = F.relu(x + (e3 if layer == 2 else e2))
        for index in range(blocks):
            x = run_block(decoder, f"layer{layer}.{index}", kind, x, up=index == 0)
        made.append(x)
    return made[::-1]


def build(net="res18", variant="sk_rd4ad"):
    return build_distiller(VARIANTS[variant], build_teacher(net, weights="random")).eval()


@functools.lru_cache
def untouched(net):
    return build(net)


def refusal(content, tmp_path, net="res18"):
    path = tmp_path / "wres50_bottle.pth"
    torch.save(content, path)
    with pytest.raises(ValueError) as caught:
        load_published(path, untouched(net))
    path.unlink()
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize(
    ("net", "variant"),
    [("res18", "sk_rd4ad"), ("res34", "rd4ad"), pytest.param("res50", "sk_rd4ad", marks=pytest.mark.slow)],
)
def test_a_published_checkpoint_computes_here_what_it_computed_there(net, variant, tmp_path):
    checkpoint = published_state(net)
    torch.save(checkpoint, tmp_path / "published.pth")
    distiller = build(net, variant)
    load_published(tmp_path / "published.pth", distiller)
    (tmp_path / "published.pth").unlink()
    pairs = distiller(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)))
    expected = published_forward(net, checkpoint, [teacher for teacher, _ in pairs], skips=variant == "sk_rd4ad")
    for (_, found), wanted in zip(pairs, expected, strict=True):
        assert wanted.std() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def test_memory_keys_in_a_bottleneck_are_dropped_as_rd4ad_s_test_does(tmp_path):
    state, distiller = published_state("res18"), build_distiller(VARIANTS["rd4ad"], build_teacher("res18", "random"))
    torch.save(state, tmp_path / "plain.pth")
    load_published(tmp_path / "plain.pth", distiller)
    plain = {name: value.clone() for name, value in distiller.bottleneck.state_dict().items()}
    state["bn"] |= {"memory0.keys": torch.ones(3, 3), "bn_layer.memory": torch.ones(2)}
    torch.save(state, tmp_path / "memory.pth")
    load_published(tmp_path / "memory.pth", distiller)
    assert all(torch.equal(value, plain[name]) for name, value in distiller.bottleneck.state_dict().items())
    state["bn"]["other"] = torch.ones(2)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="has the unknown other"):
        load_published(tmp_path / "other.pth", distiller)


@pytest.mark.parametrize(
    ("net", "bottleneck", "student"),
    [
        ("wide_res50", 67_277_824, 24_917_504),
        ("res50", 39_222_272, 15_821_824),
        ("res34", 16_925_952, 5_770_624),
        ("res18", 12_205_312, 3_703_168),
    ],
)
def test_the_structure_written_out_here_has_the_published_counts(net, bottleneck, student):
    found = []
    for shapes in published_shapes(net):
        sizes = [torch.Size(s).numel() for n, s in shapes.items() if n.rsplit(".")[-1] in ("weight", "bias")]
        found.append(sum(sizes))
    assert found == [bottleneck, student]


@pytest.mark.slow
def test_wide_res50_takes_every_published_name(tmp_path):
    zeros = torch.zeros(()), torch.zeros((), dtype=torch.long)
    states = [
        {name: zeros[name.endswith("num_batches_tracked")].expand(shape) for name, shape in shapes.items()}
        for shapes in published_shapes("wide_res50")
    ]
    torch.save(dict(zip(("bn", "decoder"), states, strict=True)), tmp_path / "published.pth")  # a few kilobytes
    distiller = build("wide_res50")
    load_published(tmp_path / "published.pth", distiller)
    assert not any(parameter.any() for parameter in distiller.trainable())


def test_rdpp_s_projection_is_loaded_from_its_published_names(tmp_path):
    """proj_a, b, c are the levels from the finest; convolutions stand at 0, 3, 6, 9 with their biases."""
    draw = torch.Generator().manual_seed(4)
    checkpoint, projection = published_state("res18"), {}
    for letter, channels in zip("abc", (64, 128, 256), strict=True):
        counts = (channels, channels // 2, channels // 4, channels // 2, channels)
        for place, (inputs, outputs) in enumerate(zip(counts, counts[1:], strict=False)):
            name = f"proj_{letter}.proj.{3 * place}"
            projection[f"{name}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=draw) / inputs**0.5
            projection[f"{name}.bias"] = torch.randn(outputs, generator=draw)
    torch.save(checkpoint | {"proj": projection}, tmp_path / "published.pth")
    distiller = build("res18", "rdpp")
    load_published(tmp_path / "published.pth", distiller)
    level = torch.rand(1, 128, 8, 8, generator=draw)
    x = level
    for place in range(4):
        name = f"proj_b.proj.{3 * place}"
        x = F.conv2d(x, projection[f"{name}.weight"], projection[f"{name}.bias"], padding=1)
        x = F.leaky_relu(F.instance_norm(x))
    found = distiller.project([torch.zeros(1, 64, 16, 16), level, torch.zeros(1, 256, 4, 4)])[1]
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)

    torch.save(checkpoint, tmp_path / "published.pth")
    with pytest.raises(ValueError, match="has no projection layer, which RD.. needs"):
        load_published(tmp_path / "published.pth", distiller)
    with pytest.raises(ValueError, match="are read for rd4ad, sk_rd4ad and rdpp"):
        load_published(tmp_path / "published.pth", build("res18", "masked"))


def test_names_saved_through_data_parallel_and_without_the_dead_layer(tmp_path):
    checkpoint = published_state("res18")
    live = {name: value for name, value in checkpoint["bn"].items() if not name.startswith(("conv4", "bn4"))}
    for part, state in (("bn", live), ("decoder", checkpoint["decoder"])):
        checkpoint[part] = {f"module.{name}": value for name, value in state.items()}
    torch.save(checkpoint, tmp_path / "published.pth")
    distiller = build()
    load_published(str(tmp_path / "published.pth"), distiller)
    assert torch.equal(distiller.bottleneck.fusion.reduce1[0].weight, live["conv3.weight"])
    assert torch.equal(
        distiller.student.stages[2][0].conv1.weight, checkpoint["decoder"]["module.layer1.0.conv1.weight"]
    )


def test_a_decoder_without_its_bottleneck_is_refused(tmp_path):
    decoder = published_state("res18")["decoder"]
    for content in ({"decoder": decoder}, decoder, {f"module.{name}": value for name, value in decoder.items()}):
        text = refusal(content, tmp_path)
        assert "was saved by the published --seg 1 code, which leaves out the trained bottleneck" in text
        assert "such a checkpoint cannot be scored" in text


@pytest.mark.slow
def test_another_backbone_is_refused_with_the_shapes(tmp_path):
    text = refusal(published_state("res50"), tmp_path, net="res18")
    assert "as a checkpoint of res18 does not fit" in text and "(512, 256, 3, 3) for (128, 64, 3, 3)" in text
    assert "as a checkpoint of res34 does not fit" in refusal(published_state("res18"), tmp_path, net="res34")
    assert "not of --net efficientnet_lite0" in refusal(published_state("res18"), tmp_path, net="efficientnet_lite0")


def test_what_is_no_such_checkpoint_is_refused(tmp_path):
    checkpoint = published_state("res18")
    assert "RD++" in refusal({**checkpoint, "proj": {}}, tmp_path)
    assert "wanted the parts bn and decoder, found epoch" in refusal({"epoch": 3}, tmp_path)
    assert "found nothing" in refusal({}, tmp_path)
    assert "holds a list" in refusal([1, 2], tmp_path)
    assert "wanted the parts" in refusal({"bn": 1, "decoder": checkpoint["decoder"]}, tmp_path)
    assert "not a table of tensors" in refusal({"bn": {"conv1.weight": 3}, "decoder": checkpoint["decoder"]}, tmp_path)
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(ValueError, match=r"cannot read .*page\.pth"):
        load_published(tmp_path / "page.pth", build())
    with pytest.raises(FileNotFoundError, match="--checkpoint"):
        load_published(tmp_path / "nowhere.pth", build())
