"""What capture promises: the user's objects untouched, pure operators, early updates, clear refusals."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradbase.capture import PartialStep, Program, capture_step, eager_peak_bytes, is_separable
from gradbase.common.errors import CaptureError, UsageError
from gradbase.ir import verify_logical
from tests.zoo import ZOO


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def program_of(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **tail: Any) -> Program:
    optimizer = optimizer or torch.optim.AdamW(model.parameters())
    return capture_step(model, loss, optimizer, torch.randn(4, 16)).program(**tail)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_logical_plan_verifies(name: str) -> None:
    case = ZOO[name]
    torch.manual_seed(0)
    model = case.model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    program = capture_step(model, case.loss, case.optimizer(model), next(iter(case.batches()))).program()
    verify_logical(program.plan)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(op.signature for op in program.plan.operators)


def test_the_model_is_put_back_when_its_code_fails() -> None:
    class Failing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not today")

    model = nn.Sequential(nn.Linear(16, 16), Failing(16, 16))
    parameters = list(model.parameters())
    with pytest.raises(CaptureError, match="not today") as refused:
        program_of(model)
    assert "test_capture.py" in str(refused.value)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_recurrent_weights_are_put_back() -> None:
    model = nn.LSTM(16, 8)
    weights = list(model._flat_weights)
    capture_step(model, lambda m, b: m(b)[0].sum(), torch.optim.SGD(model.parameters(), 0.1), torch.randn(3, 2, 16))
    assert all(a is b for a, b in zip(weights, model._flat_weights, strict=True))


def test_large_parameters_are_updated_alone_and_small_ones_together() -> None:
    model = nn.Sequential(nn.Linear(16, 2048), nn.Linear(2048, 16), nn.LayerNorm(16))
    tail = program_of(model).tail
    groups = sorted(update.names for update in tail.updates.values())
    assert ("0.weight",) in groups and ("1.weight",) in groups
    assert sum(map(len, groups)) == len(list(model.parameters()))
    assert {key for _, key in tail.states.values()} == {"exp_avg", "exp_avg_sq"}


def test_clipping_stands_between_gradients_and_updates() -> None:
    program = program_of(nn.Linear(16, 4), clip=True)
    clip = program.tail.clip
    assert clip is not None
    assert program.plan.operators[clip].phase == "clip"
    assert all(clip < update for update in program.tail.updates)
    assert any("clipping" in note for note in program.plan.notes)


def test_an_optimizer_that_may_mix_parameters_updates_them_at_once() -> None:
    class Mixing(torch.optim.SGD):
        """Not one of torch's own: nothing is known of what its parameters see of each other."""

    model = nn.Sequential(nn.Linear(16, 2048), nn.Linear(2048, 16))
    optimizer = Mixing(model.parameters(), lr=0.1)
    assert not is_separable(optimizer)
    program = program_of(model, optimizer)
    assert [len(update.names) for update in program.tail.updates.values()] == [4]
    assert any("Mixing" in note for note in program.plan.notes)


def test_a_partial_step_moves_only_its_parameters_at_the_current_rate() -> None:
    left, right = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([left, right], lr=1.0)
    step = PartialStep(optimizer, [left])
    optimizer.param_groups[0]["lr"] = 0.5
    left.grad = right.grad = torch.ones(3)
    with torch.no_grad():
        step()
    assert torch.equal(left, torch.full((3,), 0.5))
    assert torch.equal(right, torch.ones(3))


def test_gradients_nobody_owns_are_not_computed() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    program = program_of(model, torch.optim.SGD(model[1].parameters(), lr=0.1))
    assert {name for update in program.tail.updates.values() for name in update.names} == {"1.weight", "1.bias"}


def test_sparse_gradients_are_refused() -> None:
    model = nn.Embedding(8, 4, sparse=True)
    with pytest.raises(CaptureError, match="sparse"):
        capture_step(model, lambda m, b: m(b).sum(), torch.optim.SGD(model.parameters(), 0.1), torch.tensor([1, 2]))


def test_a_loss_without_parameters_is_refused() -> None:
    model = nn.Linear(16, 4)
    with pytest.raises(UsageError, match="no parameter"):
        capture_step(
            model, lambda m, b: m(b).detach().sum(), torch.optim.SGD(model.parameters(), 0.1), torch.randn(2, 16)
        )


def test_pointwise_results_may_take_over_their_argument() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
    operators = program_of(model).plan.operators
    backward = next(op for op in operators if "gelu_backward" in op.target)
    assert {written for written, _ in backward.inplace} == set(backward.writes)
    assert all(read in backward.reads for _, read in backward.inplace)
    products = [op for op in operators if op.target.startswith(("aten.mm", "aten.addmm"))]
    assert products and not any(op.inplace for op in products)


def test_dropout_reads_no_contents_for_its_noise() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5))
    draws = [op for op in program_of(model).plan.operators if op.random]
    assert [op.target for op in draws] == ["aten.bernoulli.p"]
    assert draws[0].reads == () and draws[0].recomputable


def test_shared_batch_norm_keeps_its_order() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(F.relu(self.norm(x)))

    norms = [op for op in program_of(Twice()).plan.operators if op.target == "aten.native_batch_norm.default"]
    assert len(norms) == 2 and all(op.random and op.recomputable for op in norms)


def operators_of(program: Program, target: str) -> list[Any]:
    return [op for op in program.plan.operators if op.target == target]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolutions_gradients_hold_only_what_each_of_them_reads(transposed: bool) -> None:
    """The weight's gradient leaves the weight alone, and the image's gradient the image."""
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(make(3, 8, 3), nn.Tanh(), make(8, 8, 3))
    owner = torch.optim.SGD(model.parameters(), 0.1)
    program = capture_step(model, loss, owner, torch.randn(2, 3, 9, 9)).program()
    storages = program.plan.storages
    backward = operators_of(program, "aten.convolution_backward.default")
    assert [op.module for op in backward] == ["2", "2", "0"]  # nobody asks for the gradient of the batch
    of_weight, of_image, _ = ([storages[s].name for s in op.reads] for op in backward)
    assert "2.weight" not in of_weight and "tanh" in of_weight
    assert "2.weight" in of_image and "tanh" not in of_image
    assert len(of_image) == 2


def test_a_convolution_reads_shapes_alone_where_its_plan_says_so() -> None:
    """What is not read may be anything: the bits do not change (dense, grouped, strided, transposed, two dtypes)."""
    backward = torch.ops.aten.convolution_backward.default
    torch.manual_seed(0)
    for dtype, groups, transposed, stride in itertools.product(
        (torch.float32, torch.bfloat16), (1, 4), (False, True), (1, 2)
    ):
        image, weight = torch.randn(2, 8, 12, 12, dtype=dtype), torch.randn(8, 8 // groups, 3, 3, dtype=dtype)
        rest = ([stride] * 2, [1, 1], [1, 1], transposed, [0, 0], groups)
        result = torch.ops.aten.convolution(image, weight, None, *rest)
        bias, gradient = [result.shape[1]], torch.randn_like(result)
        whole = backward(gradient, image, weight, bias, *rest, [True, True, True])
        nothing = torch.full_like(image, torch.nan), torch.full_like(weight, torch.nan)
        parameters = backward(gradient, image, nothing[1], bias, *rest, [False, True, True])
        alone = backward(gradient, nothing[0], weight, bias, *rest, [True, False, False])
        assert torch.equal(whole[0], alone[0])
        assert torch.equal(whole[1], parameters[1]) and torch.equal(whole[2], parameters[2])


def test_hooks_that_would_be_passed_over_are_refused() -> None:
    model = nn.Linear(16, 4)
    handle = model.weight.register_hook(lambda gradient: gradient * 2)
    with pytest.raises(UsageError, match=r"the parameter weight has a hook"):
        program_of(model)
    handle.remove()
    handle = model.bias.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(UsageError, match=r"the parameter bias has a hook"):
        program_of(model)
    handle.remove()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handle = optimizer.register_step_post_hook(lambda *args: None)
    with pytest.raises(UsageError, match=r"SGD has hooks on its step"):
        program_of(model, optimizer)
    handle.remove()
    program_of(model, optimizer)


def test_fused_kernels_that_a_trace_never_has_are_refused() -> None:
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval().requires_grad_(False)
    model = nn.Sequential(encoder, nn.Linear(16, 16))

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).sum()

    with pytest.raises(CaptureError, match=r"(?s)one fused kernel.*set_fastpath_enabled\(False\)"):
        eager_peak_bytes(model, loss, torch.randn(2, 3, 16), lambda *_: (0, 0))


@pytest.mark.parametrize(
    ("model", "optimizer", "told"),
    [
        (lambda: nn.LazyLinear(3), torch.optim.SGD, "weight has no shape before the first batch"),
        (lambda: nn.Linear(16, 1), torch.optim.LBFGS, "LBFGS computes the loss several times"),
        (lambda: nn.Linear(16, 1), torch.optim.SparseAdam, "SparseAdam does not support dense gradients"),
    ],
)
def test_models_and_optimizers_that_no_plan_fits(model: Any, optimizer: Any, told: str) -> None:
    built = model()
    with pytest.raises(UsageError, match=told):
        capture_step(built, lambda m, b: m(b).sum(), optimizer(built.parameters(), lr=0.1), torch.randn(2, 16))
