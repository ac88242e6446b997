"""BERT from `transformers` with random weights, masked-language loss: 4 layers, width 384, 8 x 192 tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

VOCABULARY, SEQUENCES, LENGTH = 8192, 8, 192
MASK_ID, MASKED_SHARE, IGNORED = 4, 0.15, -100


def model() -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=4,
        num_attention_heads=6,
        intermediate_size=1536,
        max_position_embeddings=LENGTH,
    )
    return BertForMaskedLM(config).train()


def batches() -> Iterator[dict[str, torch.Tensor]]:
    """`input_ids` (some masked), `attention_mask`, `labels` (-100 where nothing is asked); each int64 [8, 192]."""
    generator = torch.Generator().manual_seed(1)
    while True:
        ids = torch.randint(5, VOCABULARY, (SEQUENCES, LENGTH), generator=generator)
        masked = torch.rand(SEQUENCES, LENGTH, generator=generator) < MASKED_SHARE
        yield {
            "input_ids": ids.masked_fill(masked, MASK_ID),
            "attention_mask": torch.ones_like(ids),
            "labels": ids.masked_fill(~masked, IGNORED),
        }


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).loss


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-4)


def blocks(model: BertForMaskedLM) -> list[nn.Module]:
    """What per-block recomputation wraps."""
    return list(model.bert.encoder.layer)
