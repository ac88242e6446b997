"""A small GPT that learns to write Python from the standard library's own source code, byte by byte.

    gradbase train examples/gpt_stdlib.py --memory 40% --steps 40 --compare-eager

The four functions below are all that gradbase asks of a training job; nothing in them knows of gradbase.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, WIDTH, HEADS, VOCABULARY = 6, 256, 4, 256  # the vocabulary: bytes
SEQUENCES, LENGTH = 20, 256
BATCHES = 400
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


class Attention(nn.Module):
    """Causal self-attention over [batch, length, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention, then a perceptron, each normalized before and added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Bytes [batch, length] to logits [batch, length, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.bytes(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def corpus() -> torch.Tensor:
    """The source code of the running Python's standard library, uint8 [about ten million], in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path.relative_to(root) for path in root.rglob("*.py")]
    library = sorted(path.as_posix() for path in files if NOT_LIBRARY.isdisjoint(path.parts))
    source = b"\n".join((root / path).read_bytes() for path in library)
    return torch.frombuffer(bytearray(source), dtype=torch.uint8)


def model() -> nn.Module:
    return GPT()


def batches() -> Iterator[torch.Tensor]:
    """Bytes, int64 [20, 257]: passages drawn anywhere in the corpus, each with the byte that follows."""
    source = corpus()
    generator = torch.Generator().manual_seed(0)
    passage = torch.arange(LENGTH + 1)
    for _ in range(BATCHES):
        starts = torch.randint(len(source) - LENGTH, (SEQUENCES, 1), generator=generator)
        yield source[starts + passage].long()


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each next byte, in nats (5.5, the logarithm of 256, for a guess)."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
