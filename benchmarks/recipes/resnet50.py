"""ResNet-50 (He et al., 2016; stride in the 3x3 convolution), 16 images of 112 x 112, 1000 classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

IMAGES, SIZE, CLASSES = 16, 112, 1000
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride of the first
EXPANSION = 4


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.reduce = convolution(inputs, width, 1)
        self.middle = convolution(width, width, 3, stride)
        self.expand = convolution(width, outputs, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu_(self.reduce(x))
        y = F.relu_(self.middle(y))
        return F.relu_(self.expand(y) + self.shortcut(x))


class ResNet(nn.Module):
    """Images [batch, 3, height, width] to logits [batch, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 64, 7, 2)
        body: list[nn.Module] = []
        inputs = 64
        for width, count, first_stride in STAGES:
            for index in range(count):
                body.append(Bottleneck(inputs, width, first_stride if index == 0 else 1))
                inputs = EXPANSION * width
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu_(self.stem(x)), 3, 2, 1)
        return self.head(self.body(x).mean((2, 3)))


def model() -> nn.Module:
    return ResNet()


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images, float32 [16, 3, 112, 112], and labels, int64 [16]."""
    generator = torch.Generator().manual_seed(1)
    while True:
        images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator)
        yield images, torch.randint(CLASSES, (IMAGES,), generator=generator)


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def blocks(model: ResNet) -> list[nn.Module]:
    """What per-block recomputation wraps."""
    return list(model.body)
