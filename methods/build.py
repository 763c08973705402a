"""The one place where the parts of a network meet."""

from __future__ import annotations

from torch import nn

from methods.losses import LOSSES
from methods.pairs import PAIRS
from methods.recipe import Recipe
from methods.synthetic_anomalies import CORRUPTIONS
from model.attention import SCConv, SimAM
from model.blocks import BLOCKS, BasicBlock, Bottleneck
from model.bottleneck import FUSIONS, OCBE
from model.distiller import Distiller
from model.masking import FeatureMasking
from model.projection import Projection
from model.student import Student
from model.teacher import Teacher


def build_distiller(recipe: Recipe, teacher: Teacher) -> Distiller:
    """A network of the recipe's parts around `teacher`.

    A ResNet's bottleneck and student mirror it, as published; another teacher's are of plain residual blocks, whose
    widths and counts the recipe gives. Raises ValueError when the recipe gives them for a ResNet, and as `check_parts`.
    """
    check_parts(recipe)
    channels, resnet = teacher.channels, teacher.resnet
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock if resnet is None else BLOCKS[resnet.block]
    if resnet is None:
        widths, width = recipe.student_width or channels, 64
        depth, counts = recipe.student_blocks, (recipe.student_blocks,) * 3
    else:
        if recipe.student_width is not None or recipe.student_blocks != 1:
            raise ValueError(
                f"--net {teacher.name} is a ResNet, whose student is fixed: leave --student_width/_blocks out"
            )
        widths, width = channels, resnet.base_width
        depth = resnet.blocks[3]
        # The published student takes the teacher's counts in order, from the coarsest: its finest stage is longest.
        counts = (resnet.blocks[2], resnet.blocks[1], resnet.blocks[0])
    inner = width
    if recipe.anomalib:
        inner, depth = 64, min(depth, 2) if block is BasicBlock else depth

    fusion = FUSIONS[recipe.fusion](channels, widths)
    attention = _attention(recipe, fusion.out_channels)
    bottleneck = OCBE(fusion, 2 * widths[2], attention, block, depth, base_width=inner, dropout=recipe.dropout)
    student = Student(
        channels,
        bottleneck.out_channels,
        # a ResNet's student is as wide as the teacher and ends as its teacher does, without a linear layer
        widths=None if resnet else widths,
        block=block,
        blocks=counts,
        base_width=width,
        skips=recipe.skips,
        generation=_generation(recipe, channels),
    )
    projection = Projection(channels) if recipe.projection else None
    return Distiller(teacher, bottleneck, student, projection, recenter=recipe.recenter)


def check_parts(recipe: Recipe) -> None:
    """Raises ValueError for parts that do not exist, or do not go together."""
    unknown = [name for name, _, _ in recipe.losses if name not in LOSSES]
    if unknown or not recipe.losses:
        found = ", ".join(unknown) or "none"
        raise ValueError(f"a recipe needs losses out of {', '.join(LOSSES)}; found {found}")
    for term in recipe.losses:
        if term.pairs not in PAIRS:
            raise ValueError(f"the loss {term.name} is over pairs out of {', '.join(PAIRS)}; found {term.pairs}")
        needed = PAIRS[term.pairs]
        if needed.needs_corruption and recipe.corruption is None:
            raise ValueError(
                f"the loss {term.label} needs corrupted images: corruption is one of {', '.join(CORRUPTIONS)}"
            )
        if needed.needs_projection and not recipe.projection:
            raise ValueError(f"the loss {term.label} needs a projection, which this variant does not have")
    if recipe.corruption not in (None, *CORRUPTIONS):
        raise ValueError(f"unknown corruption {recipe.corruption!r}: choose from {', '.join(CORRUPTIONS)}")
    if recipe.fusion not in FUSIONS:
        raise ValueError(f"unknown fusion {recipe.fusion!r}: choose from {', '.join(FUSIONS)}")


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
