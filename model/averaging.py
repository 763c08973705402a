"""The average of a network over the steps of its training."""

from __future__ import annotations

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model.distiller import Distiller


class WeightAverage:
    """An exponential moving average of the trained parts of a distiller, over its steps.

    distiller  the averaged network; it shares the teacher and is never trained
    decay      what is kept of the average in a step, in (0, 1); less in the first steps: (1 + t) / (10 + t) in step t,
               so that the weights before training are forgotten

    Batch norms' running means and variances are averaged as the weights are: those of the last steps belong to the last
    weights. Counters are copied. Source: Polyak and Juditsky, 1992; the decay of the first steps is that of
    TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, distiller: Distiller, decay: float) -> None:
        self.distiller, self.decay = distiller.frozen_copy(), decay

    def update(self, distiller: Distiller, step: int) -> None:
        """Take in the weights after a step; steps count from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own, new = _tensors(self.distiller), _tensors(distiller)
        floats = [(a, b) for a, b in zip(own, new, strict=True) if a.is_floating_point()]
        averages, weights = ([pair[side] for pair in floats] for side in (0, 1))
        get_ema_multi_avg_fn(decay)(averages, weights, step)
        for average, value in zip(own, new, strict=True):
            if not average.is_floating_point():
                average.copy_(value)


def _tensors(distiller: Distiller) -> list[Tensor]:
    """All that the trained parts' state holds, without gradients."""
    return [tensor for part in distiller.trained_state().values() for tensor in part.values()]
