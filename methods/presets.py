"""Presets: what changes in every variant for a kind of teacher that its paper did not use.

What a preset says never changes, since run folders record its name: better settings get a name of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from methods.recipe import Recipe


def published(recipe: Recipe) -> Recipe:
    """Nothing: the variant as it was published."""
    return recipe


def narrow(recipe: Recipe) -> Recipe:
    """For teachers with few channels and signed features, as EfficientNet-Lite; measured in docs/results.md.

    500 steps of at most 8 images in place of 200 epochs, averaged weights, dropout in the bottleneck, the flattened
    cosine with hard mining where that is a loss, and the map in units of its spread over normal images.
    """
    training, scoring = recipe.training, recipe.scoring
    return replace(
        recipe,
        losses=tuple(term._replace(name="cosine_hard") if term.name == "cosine" else term for term in recipe.losses),
        dropout=0.2,
        training=replace(training, steps=500, batch_size=min(training.batch_size, 8), average=0.999),
        scoring=replace(scoring, anomaly_map="standardized"),
    )


PUBLISHED, NARROW = "published", "narrow"
PRESETS: dict[str, Callable[[Recipe], Recipe]] = {PUBLISHED: published, NARROW: narrow}
