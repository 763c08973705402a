"""What a variant is made of and how it is trained, as values: a row's worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from damage import DAMAGES
from losses import LOSSES
from model.bottleneck import FUSIONS
from model.student import Skip
from model.views import VIEWS


class Term(NamedTuple):
    """One loss of a step: `weight` x the loss `name` over the pairs called `of` (see model/views.py)."""

    name: str
    weight: float = 1.0
    of: str = "rebuilt"

    @property
    def label(self) -> str:
        """Its column in train.csv."""
        return self.name if self.of == "rebuilt" else f"{self.of}_{self.name}"


@dataclass(frozen=True)
class Training:
    """How a variant is trained where the user does not say otherwise; the defaults are RD4AD's.

    epochs           passes over the training images; `epochs_of` has classes of the paper that differ
    learning_rate    Adam's step size; `projection_rate` that of the projection, where there is one
    betas            Adam's memory
    weight_decay     L2 regularisation, added to the gradient as Adam does
    accumulate       batches whose gradients are summed before a step
    patience         stop after so many epochs without a lower loss on held-out normal images; 0: never
    """

    epochs: int = 200
    epochs_of: Mapping[str, int] = field(default_factory=dict)
    batch_size: int = 16
    learning_rate: float = 0.005
    projection_rate: float = 0.001
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    accumulate: int = 1
    patience: int = 0


@dataclass(frozen=True)
class Recipe:
    """What a variant is made of; the defaults are RD4AD. Raises ValueError for what cannot be.

    skips           teacher levels that help the student on the way
    losses          the terms of the loss; the first one distils
    train_levels    levels that the losses compare; 0 is the finest
    fusion          how the bottleneck joins the teacher's levels, one of `FUSIONS`
    scconv, simam   attention between fusion and embedding
    fmm             features of each level are hidden and generated anew before they are compared
    mask_rate       share of the cells that `fmm` hides; `mask_in_scoring`: not only while training
    projection      a trained projection between the teacher and the bottleneck
    damage          what is painted on the images of a second, damaged view: one of `DAMAGES`, or None
    feature_noise   standard deviation of Gaussian noise on the damaged view's features
    anomaly_map     how the levels' maps are joined
    refine          image scores are raised by `discrepancy.refinement`
    anomalib        the bottleneck's residual blocks as anomalib builds them: inner width 64 per 64 planes whatever the
                    teacher's, and two basic blocks for ResNet-34 too
    student_width   channels inside the three levels, finest first, of the student of a teacher that is not a ResNet;
                    None: the teacher's own
    student_blocks  residual blocks in each stage of that student and of its bottleneck
    """

    skips: tuple[Skip, ...] = ()
    losses: tuple[Term, ...] = (Term("cosine"),)
    train_levels: tuple[int, ...] = (0, 1, 2)
    fusion: str = "concatenation"
    scconv: bool = False
    simam: bool = False
    fmm: bool = False
    mask_rate: float = 0.2
    mask_in_scoring: bool = False
    projection: bool = False
    damage: str | None = None
    feature_noise: float = 0.0
    anomaly_map: str = "add"
    refine: bool = False
    anomalib: bool = False
    student_width: tuple[int, ...] | None = None
    student_blocks: int = 1
    training: Training = field(default_factory=Training, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", tuple(Term(*term) for term in self.losses))
        unknown = [name for name, _, _ in self.losses if name not in LOSSES]
        if unknown or not self.losses:
            found = ", ".join(unknown) or "none"
            raise ValueError(f"a recipe needs losses out of {', '.join(LOSSES)}; found {found}")
        for term in self.losses:
            if term.of not in VIEWS:
                raise ValueError(f"the loss {term.name} is over pairs out of {', '.join(VIEWS)}; found {term.of}")
            view = VIEWS[term.of]
            if view.damaged and self.damage is None:
                raise ValueError(f"the loss {term.label} needs a damaged view: damage is one of {', '.join(DAMAGES)}")
            if view.projected and not self.projection:
                raise ValueError(f"the loss {term.label} needs a projection, which this variant does not have")
        if self.damage not in (None, *DAMAGES):
            raise ValueError(f"unknown damage {self.damage!r}: choose from {', '.join(DAMAGES)}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"unknown fusion {self.fusion!r}: choose from {', '.join(FUSIONS)}")
        levels = self.train_levels
        if not levels or list(levels) != sorted(set(levels)) or not set(levels) <= {0, 1, 2}:
            raise ValueError(f"--train_levels {' '.join(map(str, levels))}: one or more of 0, 1, 2, in this order")
        if any(term.name == "consistency" for term in self.losses) and len(levels) < 2:
            raise ValueError("the consistency loss compares levels: it wants two --train_levels, or --layerloss 0")
        if self.student_width is not None and (len(self.student_width) != 3 or min(self.student_width) < 1):
            raise ValueError(f"--student_width must be three positive numbers; found {self.student_width}")
        if self.student_blocks < 1:
            raise ValueError(f"--student_blocks must be positive; found {self.student_blocks}")
