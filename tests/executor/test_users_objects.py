"""The user's objects stay theirs: schedulers, clipping, accumulation, state dicts, shapes, modes."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradbase as gb
from gradbase.catalog import Catalog
from tests.zoo import state_sha256


@pytest.fixture
def compiled(catalog: Catalog, tmp_path: Path) -> Callable[..., gb.Step]:
    def make(model: nn.Module, optimizer: Any, batch: Any, memory: Any = None, **options: Any) -> gb.Step:
        settings = {"catalog": catalog, "spill": tmp_path, "planning_effort_s": 1, **options}
        return gb.compile(model, loss, optimizer, batch, memory, **settings)

    return make


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def job(width: int = 192) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Wide enough that each weight is updated alone (64 KiB and more) and its state may leave memory."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2)]
    for _ in range(4):
        layers += [nn.Linear(width, width), nn.GELU()]
    layers.append(nn.Linear(width, 4))
    model = nn.Sequential(*layers)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def batches(sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    source = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 16, generator=source), torch.randint(0, 4, (n,), generator=source)) for n in sizes]


def least_bytes(compiled: Callable[..., gb.Step], **options: Any) -> int:
    model, optimizer = job()
    with pytest.raises(gb.InfeasibleError) as refused:
        compiled(model, optimizer, batches([64])[0], 1, **options)
    return refused.value.least_bytes


def eager(
    data: list[Any], *, clip: float | None = None, accumulate: int = 1, schedule: bool = False
) -> tuple[list[float], str, dict[str, Any]]:
    model, optimizer = job()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    losses = []
    for i, batch in enumerate(data, start=1):
        value = loss(model, batch)
        value.backward()
        losses.append(value.item())
        if i % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            if schedule:
                scheduler.step()
    return losses, state_sha256(model), optimizer.state_dict()


def same_state(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_state(left[k], right[k]) for k in left)
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.parametrize("tight", [False, True], ids=["unlimited", "least"])
def test_a_scheduler_changes_the_rate_of_planned_steps(compiled: Callable[..., gb.Step], tight: bool) -> None:
    data = batches([64] * 5)
    memory = least_bytes(compiled) if tight else None
    model, optimizer = job()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    step = compiled(model, optimizer, data[0], memory)
    losses = []
    for batch in data:
        losses.append(step(batch).item())
        scheduler.step()
    assert (losses, state_sha256(model)) == eager(data, schedule=True)[:2]


@pytest.mark.parametrize("tight", [False, True], ids=["unlimited", "least"])
def test_clipping_by_norm(compiled: Callable[..., gb.Step], tight: bool) -> None:
    data = batches([64] * 4)
    memory = least_bytes(compiled, clip_grad_norm=0.5) if tight else None
    model, optimizer = job()
    step = compiled(model, optimizer, data[0], memory, clip_grad_norm=0.5)
    losses = [step(batch).item() for batch in data]
    assert (losses, state_sha256(model)) == eager(data, clip=0.5)[:2]
    assert any("clipping" in note for note in step.logical.notes)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_accumulated_gradients(compiled: Callable[..., gb.Step], clip: float | None) -> None:
    data = batches([64] * 6)
    model, optimizer = job()
    step = compiled(model, optimizer, data[0], accumulate=3, clip_grad_norm=clip)
    losses = [step(batch).item() for batch in data]
    assert (losses, state_sha256(model)) == eager(data, accumulate=3, clip=clip)[:2]


def test_all_calls_of_an_accumulated_step_fit_the_least_memory(compiled: Callable[..., gb.Step]) -> None:
    """The one that updates needs more than those that add: both are planned before the first."""
    data = batches([64] * 6)
    memory = least_bytes(compiled, accumulate=3)
    model, optimizer = job()
    step = compiled(model, optimizer, data[0], memory, accumulate=3)
    losses = [step(batch).item() for batch in data]
    assert (losses, state_sha256(model)) == eager(data, accumulate=3)[:2]


def test_each_batch_shape_is_planned_once(compiled: Callable[..., gb.Step]) -> None:
    data = batches([64, 64, 24, 64, 24])
    model, optimizer = job()
    step = compiled(model, optimizer, data[0], "90%")
    planned_s = step.planning_s
    losses = [step(batch).item() for batch in data[:3]]
    after_two_shapes_s = step.planning_s
    losses += [step(batch).item() for batch in data[3:]]
    assert (losses, state_sha256(model)) == eager(data)[:2]
    assert step.planning_s == after_two_shapes_s > planned_s


def test_a_larger_batch_later_grows_arena_and_page_file(compiled: Callable[..., gb.Step]) -> None:
    data = batches([16, 96, 16])
    model, optimizer = job()
    step = compiled(model, optimizer, data[0], least_bytes(compiled) * 2)
    assert [step(batch).item() for batch in data] == eager(data)[0]


def test_optimizer_state_is_readable_between_steps(compiled: Callable[..., gb.Step]) -> None:
    data = batches([64] * 3)
    model, optimizer = job()
    step = compiled(model, optimizer, data[0], least_bytes(compiled))
    for batch in data:
        step(batch)
    assert step.plan.spilled, "the least memory spills optimizer state"
    assert same_state(optimizer.state_dict()["state"], eager(data)[2]["state"])
    step.close()
    assert same_state(optimizer.state_dict()["state"], eager(data)[2]["state"])


WIDE = 320  # weights of 400 KiB: worth a transfer


def least_of_wide(compiled: Callable[..., gb.Step]) -> int:
    model, optimizer = job(WIDE)
    with pytest.raises(gb.InfeasibleError) as refused:
        compiled(model, optimizer, batches([64])[0], 1)
    return refused.value.least_bytes


def spilled_weights(step: gb.Step) -> list[str]:
    storages = [step.logical.storages[s] for s in step.plan.spilled]
    return sorted(s.name for s in storages if s.kind == "parameter")


def eager_wide(data: list[Any]) -> tuple[list[float], str]:
    model, optimizer = job(WIDE)
    losses = []
    for batch in data:
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses, state_sha256(model)


def test_weights_leave_memory_and_stay_the_users(compiled: Callable[..., gb.Step]) -> None:
    """Between steps a spilled weight is read, changed and loaded like any other; closed, it has memory of its own."""
    data = batches([64] * 4)
    model, optimizer = job(WIDE)
    parameters = list(model.parameters())
    step = compiled(model, optimizer, data[0], least_of_wide(compiled))
    assert spilled_weights(step) == ["10.weight", "4.weight", "6.weight", "8.weight"]
    losses = [step(batch).item() for batch in data[:2]]
    middle = copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    step(data[0])  # a step that is thrown away
    with torch.no_grad():
        model[4].weight.zero_()
    model.load_state_dict(middle[0])
    optimizer.load_state_dict(middle[1])
    torch.set_rng_state(middle[2])
    losses += [step(batch).item() for batch in data[2:]]
    assert (losses, state_sha256(model)) == eager_wide(data)
    step.close()
    assert state_sha256(model) == eager_wide(data)[1]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_weights_that_share_memory_stay_in_it(compiled: Callable[..., gb.Step]) -> None:
    model, optimizer = job(WIDE)
    flat = torch.cat([model[4].weight.detach().flatten(), model[6].weight.detach().flatten()])
    for layer, part in zip((4, 6), flat.split(WIDE * WIDE), strict=True):
        model[layer].weight.data = part.view(WIDE, WIDE)
    step = compiled(model, optimizer, batches([64])[0], "90%")
    assert not step.plan.spilled and "spill" not in step.plan.rules


def test_a_failing_update_leaves_weights_at_home(compiled: Callable[..., gb.Step]) -> None:
    data = batches([64] * 3)
    model, optimizer = job(WIDE)
    step = compiled(model, optimizer, data[0], least_of_wide(compiled))
    step(data[0])
    places = [p.data_ptr() for p in model.parameters()]
    optimizer.param_groups[0]["betas"] = (0.9, "none")
    with pytest.raises(gb.StepError):
        step(data[1])
    assert [p.data_ptr() for p in model.parameters()] == places


def test_training_resumes_from_a_state_dict(compiled: Callable[..., gb.Step]) -> None:
    data = batches([64] * 6)
    memory = least_bytes(compiled)
    model, optimizer = job()
    step = compiled(model, optimizer, data[0], memory)
    for batch in data[:3]:
        step(batch)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    for batch in data[3:5]:  # steps that are thrown away
        step(batch)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    losses = [step(batch).item() for batch in data[3:]]
    assert losses == eager(data)[0][3:]


def test_optimizer_state_from_eager_steps_is_taken_over(compiled: Callable[..., gb.Step]) -> None:
    data = batches([64] * 4)
    memory = least_bytes(compiled)
    model, optimizer = job()
    losses = []
    for batch in data[:2]:
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    step = compiled(model, optimizer, data[2], memory)
    losses += [step(batch).item() for batch in data[2:]]
    assert (losses, state_sha256(model)) == eager(data)[:2]


def test_parameters_that_moved_are_found_again(compiled: Callable[..., gb.Step]) -> None:
    data = batches([64] * 3)
    model, optimizer = job()
    step = compiled(model, optimizer, data[0])
    losses = [step(data[0]).item()]
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    losses += [step(batch).item() for batch in data[1:]]
    assert losses == eager(data)[0]


def test_evaluation_mode_gets_a_plan_of_its_own(compiled: Callable[..., gb.Step]) -> None:
    data = batches([64] * 2)
    model, optimizer = job()
    step = compiled(model, optimizer, data[0])
    trained = step(data[0]).item()
    model.eval()
    twin = copy.deepcopy(model)
    assert step(data[1]).item() == loss(twin, data[1]).item() != trained


def test_compiling_changes_nothing(compiled: Callable[..., gb.Step]) -> None:
    model, optimizer = job()
    before, generator = state_sha256(model), torch.get_rng_state()
    compiled(model, optimizer, batches([64])[0], "60%")
    assert state_sha256(model) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())


_MEASURED = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import gradbase as gb
from tests.executor.test_users_objects import batches, job, loss
model, optimizer = job(width=512)
data = batches([8192] * 3)
options = dict(catalog=Path({folder!r}) / "catalog.sqlite", spill={folder!r}, planning_effort_s=1)
step = gb.compile(model, loss, optimizer, data[0], "50%", **options)
for batch in data:
    step(batch)
print(step.measured_peak_bytes, step.budget_bytes, step.plan.predicted_peak_bytes, step.eager_peak_bytes)
"""


def test_measured_peak_stays_in_the_budget(tmp_path: Path) -> None:
    """In a process of its own: a resident set that hundreds of tests have worn measures them too."""
    program = _MEASURED.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    measured, budget, predicted, eager_peak = map(int, done.stdout.split())
    assert measured <= budget == int(0.5 * eager_peak)
    assert abs(measured - predicted) <= 0.03 * budget


def test_explain_before_and_after_a_step(compiled: Callable[..., gb.Step]) -> None:
    model, optimizer = job()
    batch = batches([64])[0]
    step = compiled(model, optimizer, batch)
    assert "forward" in step.explain()
    with pytest.raises(gb.UsageError, match="before the first step"):
        step.explain(analyze=True)
    step(batch)
    assert "q-error" in step.explain(analyze=True).lower()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"memory": "much"}, "not an amount"),
        ({"memory": "-1GB"}, "not an amount"),
        ({"memory": 0}, "above zero"),
        ({"memory": 0.4}, 'is written "40%"'),
        ({"memory": float("nan")}, "not an amount"),
        ({"accumulate": 1.5}, "expected 1 or more"),
        ({"accumulate": 0}, "expected 1 or more"),
        ({"clip_grad_norm": -1.0}, "above zero"),
        ({"rules": ["nothing"]}, "nothing"),
    ],
)
def test_wrong_options_are_named(compiled: Callable[..., gb.Step], wrong: dict[str, Any], message: str) -> None:
    model, optimizer = job()
    with pytest.raises(gb.UsageError, match=message):
        compiled(model, optimizer, batches([64])[0], **wrong)


def test_a_loss_that_is_not_a_scalar_is_refused(catalog: Catalog) -> None:
    model, optimizer = job()
    with pytest.raises(gb.UsageError, match=r"expected a scalar"):
        gb.compile(model, lambda m, b: m(b[0]), optimizer, batches([64])[0], catalog=catalog)


def test_an_optimizer_of_another_model_is_refused(catalog: Catalog) -> None:
    model, _ = job()
    with pytest.raises(gb.UsageError, match="not the model's"):
        gb.compile(model, loss, job()[1], batches([64])[0], catalog=catalog)


def test_things_of_another_kind_are_named() -> None:
    model, optimizer = job()
    batch = batches([64])[0]
    for arguments in ((None, loss, optimizer), (model, None, optimizer), (model, loss, None), (model, optimizer, loss)):
        with pytest.raises(gb.UsageError, match=r"is a (NoneType|AdamW|function)"):
            gb.compile(*arguments, batch)  # type: ignore[arg-type]


def test_a_compiled_step_is_neither_pickled_nor_copied(compiled: Callable[..., gb.Step]) -> None:
    model, optimizer = job()
    step = compiled(model, optimizer, batches([64])[0])
    with pytest.raises(TypeError, match="keep the state dicts"):
        copy.deepcopy(step)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda m, b: loss(m, b) + float(f"{loss(m, b):.3f}"), "depends on the data in a tensor: .*test_users_objects"),
        (lambda m, b: (value := loss(m, b), value.backward())[0], "return the loss without calling backward"),
    ],
)
def test_what_a_loss_must_not_do_is_told(catalog: Catalog, tmp_path: Path, wrong: Any, told: str) -> None:
    model, optimizer = job()
    with pytest.raises(gb.CaptureError, match=rf"(?s){told}"):
        gb.compile(model, wrong, optimizer, batches([64])[0], catalog=catalog, spill=tmp_path)
