"""A model's state dict: its digest, and its file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from gradbase.cli._planning import replacing
from gradbase.common.errors import UsageError


def parameters_sha256(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, over the state dict: for each name in sorted order the name in UTF-8, then raw bytes.

    The bytes are those of the contiguous tensor in this machine's byte order. Entries that are no tensors do not count.
    """
    digest = hashlib.sha256()
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_savable(path: Path) -> None:
    """Raise UsageError when the file's format needs a package that is missing."""
    if path.suffix == ".safetensors":
        try:
            import safetensors.torch  # noqa: F401
        except ImportError as error:
            problem = f"{path} needs the package safetensors, which is not installed"
            raise UsageError(problem, "pip install safetensors, or name another ending for torch.save") from error


def save_state(model: nn.Module, path: Path) -> None:
    """Write the state dict, whole or not at all: as safetensors by the ending .safetensors, else with torch.save."""
    with replacing(path) as part:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_model

            save_model(model, str(part))  # knows tied tensors
        else:
            torch.save(model.state_dict(), part)
