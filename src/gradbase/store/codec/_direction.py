"""Adam's direction of a gradient, found by the worker, so that a codec leaves out steps and not gradients.

A codec that leaves out most of a gradient sends a number rarely, and then the sum of many steps. Adam divides by the
root of the mean square of what arrives, and of sums of c steps that agree it is sqrt(c) times the mean: such parameters
move sqrt(c) times too slowly. So a lane keeps both moments itself, of whole gradients, divides before anything is left
out, and error feedback adds up steps (as 1-bit Adam, Tang et al., 2021, which divides by moments that it has frozen;
adding up momentum rather than gradients is Deep Gradient Compression's momentum correction, Lin et al., 2018, section
3.2). What arrives is a step already: the server multiplies it by the learning rate, and decays weights.

The server's Adam would divide by the mean square of the lanes' *mean*, which is smaller than that of a lane's gradient
by what averaging takes off its noise. How much that is, a lane's own gradients tell: what two consecutive ones have in
common is no noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

_STRIDE = 64  # every so many elements one is remembered, to be compared with the next gradient's
_MEMORY = 0.98  # the share of a comparison that is left after a step
_UPDATES, _ALIKE, _SQUARES, _RATE = range(4)
_FIGURES = 4


@dataclass(frozen=True, slots=True)
class Direction:
    """Adam's numbers, and how many lanes are averaged: `together`, or (ssp, asp) each lane's part as its own update."""

    betas: tuple[float, float]
    eps: float
    lanes: int = 1
    together: bool = True


def carried_numel(numel: int, direction: Direction | None) -> int:
    """The float32 numbers that a lane keeps for a page of `numel` elements, from one push to the next."""
    return numel if direction is None else 3 * numel + _sampled(numel) + _FIGURES


class Moments:
    """What a lane keeps of a page, as views into float32 [carried_numel]: residual, moments, sample, figures.

    All zero is the beginning.
    """

    def __init__(self, carried: torch.Tensor, numel: int) -> None:
        sizes = (numel, numel, numel, _sampled(numel), _FIGURES)
        self.residual, self.mean, self.square, self.sample, self.figures = carried.split(sizes)

    def advance(self, gradient: torch.Tensor, direction: Direction, rate: float | None = None) -> None:
        """Add the direction of a gradient, float32 [numel] and finite, to the residual.

        rate: by what the server will multiply; where that changes, what was left out keeps the one it had.
        """
        if rate is not None:
            self._rescale(rate)
        beta1, beta2 = direction.betas
        updates = int(self.figures[_UPDATES]) + 1
        self.figures[_UPDATES] = updates
        self.mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        averaged = direction.lanes if direction.together else 1
        noise = self._compare(gradient[::_STRIDE], updates, averaged) if averaged > 1 else 1.0
        root = (self.square * (noise / (1 - beta2**updates))).sqrt_().add_(direction.eps)
        # What is not averaged is still divided by the lanes where it is applied.
        scale = 1 if direction.together else direction.lanes
        self.residual.addcdiv_(self.mean, root, value=scale / (1 - beta1**updates))

    def _rescale(self, rate: float) -> None:
        before = float(self.figures[_RATE])
        if rate > 0:
            self.figures[_RATE] = rate
            if before > 0:
                self.residual.mul_(before / float(self.figures[_RATE]))

    def _compare(self, sample: torch.Tensor, updates: int, lanes: int) -> float:
        """The mean square of the lanes' mean over that of one lane: 1 / lanes if all is noise, 1 if all lanes agree."""
        now, before = sample.numpy().astype(np.float64), self.sample.numpy().astype(np.float64)
        self.sample.copy_(sample)
        if updates == 1:
            return 1.0
        # numpy's sums do not depend on where the numbers lie, which a replay in another process would show.
        self._remember(_ALIKE, float((now * before).sum()))
        self._remember(_SQUARES, float((now * now + before * before).sum()) / 2)
        alike, squares = float(self.figures[_ALIKE]), float(self.figures[_SQUARES])
        if squares <= 0:
            return 1.0
        return min(max((alike + (squares - alike) / lanes) / squares, 1 / lanes), 1.0)

    def _remember(self, figure: int, value: float) -> None:
        self.figures[figure] = _MEMORY * float(self.figures[figure]) + (1 - _MEMORY) * value


def _sampled(numel: int) -> int:
    return -(-numel // _STRIDE)
