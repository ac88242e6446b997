"""Small training jobs, one for everything that capture, planning and execution must get right.

`ZOO` holds what must train bit for bit as eager PyTorch does, `REFUSED` what must be refused at capture. A case has
the four functions of a recipe, and each runs a few steps in well under a second. Models of `transformers` are there
when that package is.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from torch.utils.checkpoint import checkpoint

Loss = Callable[[nn.Module, Any], Tensor]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]

BATCHES = 5


@dataclass(frozen=True)
class Case:
    """One training job. `about` says what it is there to show."""

    name: str
    about: str
    model: Callable[[], nn.Module]
    batches: Callable[[], Iterable[Any]]
    loss: Loss
    optimizer: MakeOptimizer


ZOO: dict[str, Case] = {}
REFUSED: dict[str, Case] = {}


def eager_run(case: Case, steps: int, seed: int = 0) -> tuple[list[float], str]:
    """Train `case` by plain PyTorch: the losses, and the SHA-256 of the final state dict (see `state_sha256`).

    The calls come in the order that every runner of recipes keeps: seed, model, optimizer, batches, steps.
    """
    torch.manual_seed(seed)
    model = case.model()
    optimizer = case.optimizer(model)
    losses = []
    for batch, _ in zip(case.batches(), range(steps), strict=False):
        value = case.loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses, state_sha256(model)


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over the raw bytes of the state dict's tensors, in the order of their sorted names."""
    digest = hashlib.sha256()
    state = model.state_dict()
    for name in sorted(state):
        digest.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# What the cases are made of.


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def vectors(rows: int = 8, width: int = 16, classes: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows, float32 [rows, width], and labels, int64 [rows]."""
    generator = _generator()
    for _ in range(BATCHES):
        yield torch.randn(rows, width, generator=generator), torch.randint(classes, (rows,), generator=generator)


def images(count: int = 2, size: int = 16, classes: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, float32 [count, 3, size, size], and labels, int64 [count]."""
    generator = _generator()
    for _ in range(BATCHES):
        pixels = torch.randn(count, 3, size, size, generator=generator)
        yield pixels, torch.randint(classes, (count,), generator=generator)


def sequences(count: int = 2, length: int = 8, width: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    """Sequences and targets, both float32 [count, length, width]."""
    generator = _generator()
    for _ in range(BATCHES):
        yield (
            torch.randn(count, length, width, generator=generator),
            torch.randn(count, length, width, generator=generator),
        )


def tokens(count: int = 2, length: int = 8, vocabulary: int = 32) -> Iterator[Tensor]:
    """Token ids, int64 [count, length + 1]."""
    generator = _generator()
    for _ in range(BATCHES):
        yield torch.randint(vocabulary, (count, length + 1), generator=generator)


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def regress(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets)


def predict_next(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def _add(
    about: str,
    model: Callable[[], nn.Module],
    batches: Callable[[], Iterable[Any]] = vectors,
    loss: Loss = classify,
    optimizer: MakeOptimizer = adamw,
    *,
    name: str,
    to: dict[str, Case] = ZOO,
) -> None:
    assert name not in to, name
    to[name] = Case(name, about, model, batches, loss, optimizer)


def perceptron(dropout: float = 0.0) -> nn.Module:
    layers = [nn.Linear(16, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
    return nn.Sequential(*layers)


# Kinds of networks.


class Residual(nn.Module):
    """Two convolutions with batch normalization, activated in place, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.norm1(self.first(x)))
        return F.relu_(self.norm2(self.second(y)) + self.shortcut(x))


class Pooled(nn.Module):
    """A body over images, then the mean over pixels, then a linear head."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = Residual(3, 8)
        self.bottom = Residual(8, 16)
        self.widen = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.up = Residual(16, 8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = self.widen(self.bottom(F.max_pool2d(skip, 2)))
        return self.head(self.up(torch.cat([skip, x], dim=1)))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, channels last for norm and perceptron, a learned scale, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.reduce = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.reduce(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class Recurrent(nn.Module):
    """A recurrent layer without its final state, and a linear head."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int = 16) -> None:
        super().__init__()
        self.recurrent = kind(16, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


class Experts(nn.Module):
    """A mixture of experts whose row r always goes to expert r modulo their number."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(experts))
        self.gate = nn.Linear(16, experts)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        mixed = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = slice(index, None, len(self.experts))
            mixed[rows] = weights[rows, index, None] * expert(x[rows])
        return self.head(mixed + x)


class Language(nn.Module):
    """Embedding, one encoder layer, and a head that shares the embedding's weight."""

    def __init__(self, tied: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(32, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=dropout, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 32, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.encoder(self.tokens(ids), src_mask=mask, is_causal=True))


def convnext() -> nn.Module:
    return Pooled(nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), ConvNeXtBlock(8), ConvNeXtBlock(8)), 8)


def segment(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    pixels, _ = batch
    return F.mse_loss(model(pixels), pixels)


def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


_add("linear layers and dropout", partial(perceptron, 0.2), name="mlp_dropout")
_add(
    "batch normalization, its statistics, in-place activations",
    lambda: Pooled(nn.Sequential(Residual(3, 8), nn.MaxPool2d(2), Residual(8, 16)), 16),
    images,
    name="resnet",
)
_add("long-lived skips, concatenation, transposed convolution", UNet, images, segment, name="unet")
_add("depthwise convolution, permuted layouts, layer scale", convnext, images, name="convnext")
_add("a recurrent kernel with hidden workspace", partial(Recurrent, nn.LSTM), sequences, regress, name="lstm")
_add("a recurrent layer without fused kernel", partial(Recurrent, nn.GRU), sequences, regress, name="gru")
_add("gates in rows that no vector divides", partial(Recurrent, nn.GRU, 23), sequences, regress, name="gru_ragged")
_add("attention with dropout", transformer_encoder, sequences, regress, name="transformer_encoder")
_add("static routing: strided rows written in place", Experts, name="experts")
_add("one parameter under two names", Language, tokens, predict_next, name="tied_weights")
_add("embedding and head apart, dropout", partial(Language, False, 0.1), tokens, predict_next, name="language")


# Parameters, losses and batches.


class Frozen(nn.Module):
    """The first layer does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Linear(16, 32).requires_grad_(False)
        self.trained = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.trained(self.fixed(x).tanh())


class Unused(nn.Module):
    """`spare` asks for a gradient and never gets one."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(16, 4)
        self.spare = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Keywords(nn.Module):
    """Takes two tensors and a keyword argument, returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(16, 4)
        self.right = nn.Linear(16, 4)

    def forward(self, left: Tensor, right: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.left(left) + scale * self.right(right)}


def nested() -> Iterator[dict[str, Any]]:
    generator = _generator()
    for _ in range(BATCHES):
        yield {
            "args": (torch.randn(8, 16, generator=generator), torch.randn(8, 16, generator=generator)),
            "kwargs": {"scale": torch.rand(8, 1, generator=generator)},
            "labels": [torch.randint(4, (8,), generator=generator)],
        }


def classify_nested(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    logits = model(*batch["args"], **batch["kwargs"])["logits"]
    return F.cross_entropy(logits, batch["labels"][0])


def several_terms(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    logits = model(inputs)
    smooth = logits.logsumexp(-1).square().mean()
    weights = sum(parameter.square().sum() for parameter in model.parameters())
    return F.cross_entropy(logits, labels) + 1e-2 * smooth + 1e-3 * weights


def classify_autocast(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return classify(model, batch)


_add("a frozen layer", Frozen, name="frozen")
_add("a parameter without gradient stays as it is", Unused, name="unused_parameter")
_add("three loss terms, one over the parameters", perceptron, loss=several_terms, name="several_losses")
_add("a dict with a tuple, keyword arguments and a list", Keywords, nested, classify_nested, name="nested_batch")
_add("autocast to bfloat16 inside the loss", perceptron, loss=classify_autocast, name="autocast")
_add(
    "autocast around convolution and batch normalization",
    lambda: Pooled(Residual(3, 8), 8),
    images,
    classify_autocast,
    name="autocast_conv",
)


# In-place updates, views and buffers.


class InPlace(nn.Module):
    """Activations over their arguments, and slices that are updated in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.first(x))
        left, right = y.chunk(2, dim=1)
        y = torch.cat([left.mul(0.5), right], dim=1)
        y[:, :4] += 1.0
        y[:, 4:8].mul_(2.0)
        return self.second(y.view(-1, 2, 16).transpose(1, 2).reshape(-1, 32))


class Counter(nn.Module):
    """Buffers that the forward pass updates: a count, and a running mean that it also reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.linear(x - self.mean)


class Carrying(nn.Module):
    """A recurrent state in a buffer that every step rebinds, and weights that are columns of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        columns = 0.3 * torch.randn(16, 20)
        self.inner, self.outer = nn.Parameter(columns[:, :16]), nn.Parameter(columns[:, 16:])
        self.register_buffer("state", torch.zeros(8, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = (x + self.state @ self.inner).tanh()
        self.state = y.detach()
        return y @ self.outer


_add("a buffer carried from step to step, weights in one storage", Carrying, name="carried")
_add("in-place activations, views, slices updated in place", InPlace, name="in_place")
_add("buffers updated by the forward pass", Counter, name="counter_buffer")


class Checkpointed(nn.Module):
    """Activation checkpointing of the user's own around a part with dropout, which it computes twice."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Linear(16, 32)
        self.part = nn.Sequential(nn.GELU(), nn.Dropout(0.3), nn.Linear(32, 32), nn.GELU())
        self.last = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.part, self.first(x), use_reentrant=self.reentrant))


class Fourier(nn.Module):
    """Complex weights in the frequency domain; autograd conjugates without a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.filter = nn.Parameter(torch.randn(9, dtype=torch.complex64))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.fft.irfft(torch.fft.rfft(self.first(x)) * self.filter * 1j, n=16))


_add("checkpointing over dropout", partial(Checkpointed, False), name="checkpointed")
_add("reentrant checkpointing over dropout", partial(Checkpointed, True), name="checkpointed_reentrant")
_add("complex numbers", Fourier, name="fourier")


class Orthogonal(nn.Module):
    """Two orthogonal weights, by an exponential and by Cayley's map: linear algebra, which takes no made-up numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = orthogonal(nn.Linear(16, 16), orthogonal_map="matrix_exp")
        self.second = orthogonal(nn.Linear(16, 16), orthogonal_map="cayley")
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()))


_add("orthogonal weights", Orthogonal, name="orthogonal")
_add(
    "instance normalization, whose statistics are averages over the batch",
    lambda: Pooled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), 8),
    images,
    name="instance_norm",
)


# Optimizers: the same perceptron, biases in a group of their own.


def grouped(kind: type[torch.optim.Optimizer], settings: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return kind([{"params": weights}, {"params": biases, "lr": 2e-3, "weight_decay": 0.0}], **settings)


OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-2}),
    "sgd_nesterov": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 1e-2}),
    "adam_amsgrad": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2, "lr_decay": 1e-2}),
    "adafactor": (torch.optim.Adafactor, {"lr": 1e-2}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2}),
    "rmsprop_centered": (torch.optim.RMSprop, {"lr": 1e-2, "momentum": 0.9, "centered": True}),
}
for _name, (_kind, _settings) in OPTIMIZERS.items():
    _add(
        f"{_kind.__name__}, {_settings}",
        perceptron,
        optimizer=partial(grouped, _kind, _settings),
        name=f"optimizer_{_name}",
    )


# Models of `transformers`, from a configuration, with random weights.

_TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def tiny(model: str, config: str, **settings: Any) -> nn.Module:
    """The class `model` of `transformers`, made from the class `config` with `settings`, in training mode."""
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**settings)).train()


def labelled_tokens() -> Iterator[dict[str, Tensor]]:
    for ids in tokens(length=7):
        yield {"input_ids": ids, "labels": ids}


def labelled_images() -> Iterator[dict[str, Tensor]]:
    for pixels, labels in images():
        yield {"pixel_values": pixels, "labels": labels}


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


if importlib.util.find_spec("transformers") is not None:
    _models: dict[str, tuple[Callable[[], nn.Module], Callable[[], Iterable[Any]]]] = {
        "gpt2": (
            partial(tiny, "GPT2LMHeadModel", "GPT2Config", n_layer=2, n_embd=16, n_head=2, vocab_size=32),
            labelled_tokens,
        ),
        "bert": (
            partial(tiny, "BertForMaskedLM", "BertConfig", vocab_size=32, max_position_embeddings=16, **_TINY),
            labelled_tokens,
        ),
        "llama": (
            partial(tiny, "LlamaForCausalLM", "LlamaConfig", vocab_size=32, max_position_embeddings=16, **_TINY),
            labelled_tokens,
        ),
        "vit": (
            partial(tiny, "ViTForImageClassification", "ViTConfig", image_size=16, patch_size=8, num_labels=4, **_TINY),
            labelled_images,
        ),
        "t5": (
            partial(
                tiny, "T5ForConditionalGeneration", "T5Config",
                vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
            ),
            labelled_tokens,
        ),
    }  # fmt: skip
    for _name, (_model, _batches) in _models.items():
        _add(f"{_name} of transformers", _model, _batches, own_loss, name=f"transformers_{_name}")


# What cannot be traced.


class ItemInForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * x.abs().max().item()


class DataDependentBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y if y.sum() > 0 else -y


class Nonzero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        positive = (x[:, 0] > 0).nonzero()[:, 0]
        return self.linear(x).index_add(0, positive, self.linear(x[positive]))


class SeedsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return self.linear(x + torch.randn_like(x))


_add("a generator that the step itself sets", SeedsItself, name="seed", to=REFUSED)
_add("a number read from a tensor", ItemInForward, name="item", to=REFUSED)
_add("a branch on a tensor's value", DataDependentBranch, name="branch", to=REFUSED)
_add("a shape that depends on values", Nonzero, name="nonzero", to=REFUSED)
