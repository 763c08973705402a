"""A variant is a row: what it is made of, and the one place where the parts meet."""

from __future__ import annotations

from dataclasses import dataclass

from discrepancy import LOSSES
from model.bottleneck import OCBE
from model.distiller import Distiller
from model.student import Skip, Student
from model.teacher import Teacher


@dataclass(frozen=True)
class Recipe:
    """What a variant is made of; the defaults are RD4AD. Raises ValueError for what cannot be.

    skips           teacher levels that help the student on the way
    losses          names of `discrepancy.LOSSES` and their weights
    student_width   channels inside the three levels, finest first, of the student of a teacher that is not a ResNet;
                    None: the teacher's own
    student_blocks  residual blocks in each stage of that student and of its bottleneck
    """

    skips: tuple[Skip, ...] = ()
    losses: tuple[tuple[str, float], ...] = (("cosine", 1.0),)
    student_width: tuple[int, ...] | None = None
    student_blocks: int = 1

    def __post_init__(self) -> None:
        unknown = [name for name, _ in self.losses if name not in LOSSES]
        if unknown or not self.losses:
            found = ", ".join(unknown) or "none"
            raise ValueError(f"a recipe needs losses out of {', '.join(LOSSES)}; found {found}")
        if self.student_width is not None and (len(self.student_width) != 3 or min(self.student_width) < 1):
            raise ValueError(f"--student_width must be three positive numbers; found {self.student_width}")
        if self.student_blocks < 1:
            raise ValueError(f"--student_blocks must be positive; found {self.student_blocks}")


# Named by the published code's words for levels: E3 is our level 2, E2 our level 1.
SKIPS: dict[str, tuple[Skip, ...]] = {
    "none": (),
    "E3": (Skip(source=2, into=1),),
    "E2": (Skip(source=1, into=0),),
    "both": (Skip(source=2, into=1), Skip(source=1, into=0)),
}

VARIANTS = {
    "rd4ad": Recipe(),
    "sk_rd4ad": Recipe(skips=SKIPS["both"], losses=(("cosine", 1.0), ("consistency", 0.05))),
}


def build_distiller(recipe: Recipe, teacher: Teacher) -> Distiller:
    """The parts that `recipe` asks for around `teacher`.

    A ResNet's bottleneck and student mirror it, as published; another teacher's are of plain residual blocks, whose
    widths and counts the recipe gives. Raises ValueError when the recipe gives them for a ResNet.
    """
    residual, channels = teacher.residual, teacher.channels
    if residual is None:
        widths, blocks = recipe.student_width or channels, recipe.student_blocks
        bottleneck = OCBE(channels, widths, blocks=blocks)
        counts = (blocks, blocks, blocks)
        student = Student(channels, bottleneck.out_channels, widths, blocks=counts, skips=recipe.skips)
        return Distiller(teacher, bottleneck, student)
    if recipe.student_width is not None or recipe.student_blocks != 1:
        raise ValueError(f"--net {teacher.name} is a ResNet, whose student is fixed: leave --student_width/_blocks out")
    block, width = residual.block, residual.base_width
    bottleneck = OCBE(channels, block=block, blocks=residual.blocks[3], base_width=width)
    # The published student takes the teacher's counts in order, from the coarsest level: its finest stage is longest.
    counts = (residual.blocks[2], residual.blocks[1], residual.blocks[0])
    student = Student(
        channels, bottleneck.out_channels, block=block, blocks=counts, base_width=width, skips=recipe.skips
    )
    return Distiller(teacher, bottleneck, student)
