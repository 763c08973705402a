"""A variant is a row: the table of the family, and the one place where the parts meet."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock

from model.attention import SCConv, SimAM
from model.bottleneck import FUSIONS, OCBE
from model.distiller import Distiller
from model.masking import FeatureMasking
from model.projection import Projection
from model.recipe import Recipe, Term, Training
from model.student import Skip, Student
from model.teacher import Teacher

# Named by the published code's words for levels: E3 is our level 2, E2 our level 1.
SKIPS: dict[str, tuple[Skip, ...]] = {
    "none": (),
    "E3": (Skip(source=2, into=1),),
    "E2": (Skip(source=1, into=0),),
    "both": (Skip(source=2, into=1), Skip(source=1, into=0)),
}

# RD++'s epochs for each class of MVTec AD, by its published code.
RDPP_EPOCHS = (
    dict.fromkeys(("carpet", "leather"), 10)
    | dict.fromkeys(("hazelnut", "metal_nut"), 160)
    | dict.fromkeys(("pill", "bottle"), 200)
    | dict.fromkeys(("grid", "tile"), 260)
    | dict.fromkeys(("screw", "toothbrush"), 280)
    | dict.fromkeys(("capsule", "transistor", "zipper"), 300)
    | {"wood": 100, "cable": 240}
)
PROJECTING = 0.2 / 1.11  # RD++: 0.2 x (SSOT + 0.01 reconstruction + 0.1 contrast) / 1.11
SSOT = Term("sinkhorn", PROJECTING, of="shuffled")  # a no-op as published, so it is off unless asked for

VARIANTS = {
    "rd4ad": Recipe(),
    "sk_rd4ad": Recipe(skips=SKIPS["both"], losses=(Term("cosine"), Term("consistency", 0.05))),
    "masked": Recipe(
        losses=(Term("cosine_pixel"),),
        fusion="mixing",
        scconv=True,
        simam=True,
        fmm=True,
        training=Training(learning_rate=0.001, betas=(0.9, 0.999), weight_decay=1e-5, patience=20),
    ),
    "mrkd": Recipe(losses=(Term("cosine", of="restored"),), fmm=True, mask_in_scoring=True, damage="swap_patches"),
    "drd": Recipe(
        losses=(
            Term("cosine_pixel"),
            Term("cosine_channel"),
            Term("cosine_channel", of="restored"),
            Term("absolute", 0.1, of="segmented"),
        ),
        fusion="cascade",
        damage="copy_paste",
        feature_noise=0.1,
        anomaly_map="mean",
        refine=True,
        training=Training(batch_size=4, weight_decay=1e-5),
    ),
    "rdpp": Recipe(
        losses=(
            Term("cosine"),
            Term("cosine_pixel", 0.01 * PROJECTING, of="projected"),
            Term("contrast", 0.1 * PROJECTING, of="contrasted"),
        ),
        projection=True,
        damage="simplex",
        training=Training(epochs_of=RDPP_EPOCHS, accumulate=2),
    ),
    "rd_anomalib": Recipe(anomalib=True, training=Training(betas=(0.5, 0.99))),
}


def build_distiller(recipe: Recipe, teacher: Teacher) -> Distiller:
    """The parts that `recipe` asks for around `teacher`.

    A ResNet's bottleneck and student mirror it, as published; another teacher's are of plain residual blocks, whose
    widths and counts the recipe gives. Raises ValueError when the recipe gives them for a ResNet.
    """
    channels, residual = teacher.channels, teacher.residual
    if residual is None:
        widths, block, width = recipe.student_width or channels, BasicBlock, 64
        depth, counts = recipe.student_blocks, (recipe.student_blocks,) * 3
    else:
        if recipe.student_width is not None or recipe.student_blocks != 1:
            raise ValueError(
                f"--net {teacher.name} is a ResNet, whose student is fixed: leave --student_width/_blocks out"
            )
        widths, block, width = channels, residual.block, residual.base_width
        depth = residual.blocks[3]
        # The published student takes the teacher's counts in order, from the coarsest: its finest stage is longest.
        counts = (residual.blocks[2], residual.blocks[1], residual.blocks[0])
    inner = width
    if recipe.anomalib:
        inner, depth = 64, min(depth, 2) if block is BasicBlock else depth

    fusion = FUSIONS[recipe.fusion](channels, widths)
    attention = _attention(recipe, fusion.out_channels)
    bottleneck = OCBE(fusion, 2 * widths[2], attention, block=block, blocks=depth, base_width=inner)
    student = Student(
        channels,
        bottleneck.out_channels,
        # a ResNet's student is as wide as the teacher and ends as its teacher does, without a linear layer
        widths=None if residual else widths,
        block=block,
        blocks=counts,
        base_width=width,
        skips=recipe.skips,
        generation=_generation(recipe, channels),
    )
    projection = Projection(channels) if recipe.projection else None
    return Distiller(teacher, bottleneck, student, projection)


def _attention(recipe: Recipe, channels: int) -> list[nn.Module]:
    """ICCK's SCSAtt, or the part of it that is switched on.

    SCConv's softmax over twice its channels makes its output small, so a batch norm follows it (our choice).
    """
    parts: list[nn.Module] = []
    if recipe.scconv:
        parts += [SCConv(channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return [*parts, SimAM()] if recipe.simam else parts


def _generation(recipe: Recipe, channels: tuple[int, ...]) -> list[FeatureMasking]:
    if not recipe.fmm:
        return []
    return [FeatureMasking(count, recipe.mask_rate, recipe.mask_in_scoring) for count in channels]
