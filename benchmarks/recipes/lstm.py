"""A language model of four LSTM layers, width 512: 48 sequences of 60 tokens, vocabulary 256."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, WIDTH, VOCABULARY = 4, 512, 256
SEQUENCES, LENGTH = 48, 60


class Layer(nn.Module):
    """One LSTM layer over [batch, length, width], without its final state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


class Language(nn.Module):
    """Token ids [batch, length] to logits [batch, length, vocabulary]."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def model() -> nn.Module:
    return Language()


def batches() -> Iterator[torch.Tensor]:
    """Token ids, int64 [48, 121]: each sequence and its next token."""
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randint(VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def blocks(model: Language) -> list[nn.Module]:
    """What per-block recomputation wraps."""
    return list(model.layers)
