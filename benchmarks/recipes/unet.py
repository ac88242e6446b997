"""A U-Net (Ronneberger et al., 2015) with batch normalization: 4 images of 192 x 192, two classes a pixel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

IMAGES, SIZE, CLASSES = 4, 192, 2
WIDTHS = (32, 64, 128, 256)


class DoubleConvolution(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """Images [batch, 3, height, width] to logits [batch, classes, height, width]."""

    def __init__(self) -> None:
        super().__init__()
        ins = (3, *WIDTHS[:-1])
        self.down = nn.ModuleList(DoubleConvolution(a, b) for a, b in zip(ins, WIDTHS, strict=True))
        self.bottom = DoubleConvolution(WIDTHS[-1], 2 * WIDTHS[-1])
        self.widen = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(WIDTHS))
        self.up = nn.ModuleList(DoubleConvolution(2 * w, w) for w in reversed(WIDTHS))
        self.head = nn.Conv2d(WIDTHS[0], CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for down in self.down:
            skips.append(down(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for widen, up in zip(self.widen, self.up, strict=True):
            x = up(torch.cat([skips.pop(), widen(x)], dim=1))
        return self.head(x)


def model() -> nn.Module:
    return UNet()


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images, float32 [4, 3, 192, 192], and a class for each pixel, int64 [4, 192, 192]."""
    generator = torch.Generator().manual_seed(1)
    while True:
        images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator)
        yield images, torch.randint(CLASSES, (IMAGES, SIZE, SIZE), generator=generator)


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def blocks(model: UNet) -> list[nn.Module]:
    """What per-block recomputation wraps."""
    return [*model.down, model.bottom, *model.up]
