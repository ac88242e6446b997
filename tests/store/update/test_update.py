"""Whatever the server applies page by page ends in the bits that torch.optim gives on whole tensors."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.common.errors import StoreError, UsageError
from gradbase.store.layout import TensorSpec, lay_out, specs_of_model, tensor_view
from gradbase.store.update import (
    RowwiseAdagrad,
    Updater,
    UpdateRule,
    allocate,
    load_state_dict,
    memory_plan,
    rule_of,
    settings_of,
    state_dict_of,
)

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, maximize=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "momentum fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.01, weight_decay=0.1, initial_accumulator_value=0.5),
}


class Net(torch.nn.Module):
    """Sizes that leave the last page, block and vector partly filled."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(37, 29)
        self.b = torch.nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.c = torch.nn.Parameter(torch.tensor(0.5))
        self.frozen = torch.nn.Parameter(torch.randn(9), requires_grad=False)
        self.norm = torch.nn.BatchNorm1d(29)


def two_groups(make, model):
    """Parameter groups with settings of their own. (Not by `add_param_group`: Adagrad of torch 2.11 forgets it.)"""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    first, rest = ([p for n, p in trained.items() if n.startswith("a") is kind] for kind in (True, False))
    return make([{"params": first}, {"params": rest, "lr": 0.03, "weight_decay": 0.02}])


def store_of(model, rule, shard_count=2, page_bytes=1024, sharded=True):
    layout = lay_out(specs_of_model(model, costs=rule.costs()), shard_count, page_bytes=page_bytes)
    shards = range(shard_count) if sharded else [None]
    updaters = [Updater(layout, rule, allocate(layout, rule, shard), shard=shard) for shard in shards]
    for updater in updaters:
        updater.initialize()
        for page in updater.pages:
            updater.assign(page.number, part(model.state_dict()[layout.tensors[page.tensor].name], layout, page))
    return layout, updaters


def in_memory_order(tensor):
    return torch.as_strided(tensor, (tensor.numel(),), (1,))


def part(tensor, layout, page):
    return in_memory_order(tensor)[page.start : page.start + page.numel]


def assert_same(model, layout, updaters):
    state = model.state_dict()
    for updater in updaters:
        for page in updater.pages:
            name = layout.tensors[page.tensor].name
            assert torch.equal(updater.value(page), part(state[name], layout, page)), name


def gradients_like(model, lanes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            name: torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        for _ in range(lanes)
    ]


def plain_step(model, optimizer, lanes):
    """One process that accumulates the same micro-batches in the same order."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            total = lanes[0][name].clone()
            for lane in lanes[1:]:
                total += lane[name]
            parameter.grad = total.mul_(1 / len(lanes))
    optimizer.step()


def store_step(layout, updaters, lanes):
    for updater in updaters:
        for page in updater.pages:
            name = layout.tensors[page.tensor].name
            if name in lanes[0]:
                updater.apply(page.number, [part(lane[name], layout, page) for lane in lanes])


@pytest.mark.parametrize("kind", OPTIMIZERS)
@settings(max_examples=6, deadline=None)
@given(lanes=st.integers(1, 4), steps=st.integers(1, 4), sharded=st.booleans(), seed=st.integers(0, 99))
def test_the_server_is_bit_equal_to_torch_optim(kind, lanes, steps, sharded, seed):
    torch.manual_seed(seed)
    model = Net()
    optimizer = two_groups(OPTIMIZERS[kind], model)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    layout, updaters = store_of(model, rule_of(optimizer, model), sharded=sharded)
    for step in range(steps):
        gradients = gradients_like(model, lanes, seed + step)
        for updater in updaters:
            updater.set_settings(settings_of(optimizer))
        store_step(layout, updaters, gradients)
        plain_step(model, optimizer, gradients)
        schedule.step()
    assert_same(model, layout, updaters)
    assert_states_equal(state_dict_of(updaters, optimizer, model), optimizer.state_dict())


def assert_states_equal(ours, theirs):
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, state in theirs["state"].items():
        assert ours["state"][index].keys() == state.keys()
        for key, value in state.items():
            if value is not None:
                assert torch.equal(ours["state"][index][key], value), key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_other_dtypes_too(kind, dtype):
    torch.manual_seed(0)
    model = torch.nn.Linear(33, 65).to(dtype)
    optimizer = OPTIMIZERS[kind](model.parameters())
    layout, updaters = store_of(model, rule_of(optimizer, model))
    for step in range(3):
        gradients = gradients_like(model, 3, step)
        store_step(layout, updaters, gradients)
        plain_step(model, optimizer, gradients)
    assert_same(model, layout, updaters)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam amsgrad", "adagrad"])
def test_training_goes_on_from_a_saved_optimizer(kind):
    """torch for two steps, its state into a store, a step there: as three steps of torch."""
    torch.manual_seed(1)
    model = Net()
    optimizer = two_groups(OPTIMIZERS[kind], model)
    for step in range(2):
        plain_step(model, optimizer, gradients_like(model, 2, step))
    layout, updaters = store_of(model, rule_of(optimizer, model))
    load_state_dict(updaters, optimizer.state_dict(), optimizer, model)
    gradients = gradients_like(model, 2, 7)
    store_step(layout, updaters, gradients)
    plain_step(model, optimizer, gradients)
    assert_same(model, layout, updaters)
    assert_states_equal(state_dict_of(updaters, optimizer, model), optimizer.state_dict())


def test_reducing_first_and_applying_later_is_the_same():
    torch.manual_seed(2)
    model = torch.nn.Linear(700, 500)
    optimizer = torch.optim.AdamW(model.parameters())
    rule = rule_of(optimizer, model)
    layout, (now,) = store_of(model, rule, 1, 1 << 20)
    _, (later,) = store_of(model, rule, 1, 1 << 20)
    for page in layout.pages:
        lanes = [torch.randn(page.numel) for _ in range(3)]
        now.apply(page.number, lanes)
        later.apply(page.number, [later.reduce(page.number, lanes)], 1.0)
        assert torch.equal(now.value(page), later.value(page))


def test_gradients_are_left_as_they_were():
    model = torch.nn.Linear(10, 10)
    layout, (updater,) = store_of(model, rule_of(torch.optim.Adam(model.parameters(), weight_decay=0.1), model), 1)
    lanes = [torch.randn(layout.pages[0].numel) for _ in range(2)]
    before = [lane.clone() for lane in lanes]
    updater.apply(0, lanes)
    assert all(torch.equal(lane, old) for lane, old in zip(lanes, before, strict=True))


def test_a_slab_is_shared_as_it_is():
    """Updating pages of a slab changes the model's own tensors, which are views into it."""
    model = torch.nn.Linear(64, 64)
    rule = rule_of(torch.optim.SGD(model.parameters(), lr=1.0), model)
    layout = lay_out(specs_of_model(model), 1, page_bytes=4096)
    memory = {key: bytearray(nbytes) for key, nbytes in memory_plan(layout, rule).items()}
    view = tensor_view(layout, memory["values"], "weight")
    updater = Updater(layout, rule, memory)
    for page in layout.of_tensor("weight"):
        updater.apply(page.number, [torch.full((page.numel,), 2.0)])
    assert view.eq(-2.0).all()
    assert updater.steps.tolist() == [1] * len(layout.of_tensor("weight")) + [0]


def test_rules_travel_as_json():
    model = Net()
    rule = rule_of(two_groups(OPTIMIZERS["adam"], model), model)
    assert UpdateRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule


def test_several_optimizers_make_one_rule():
    model = torch.nn.ModuleDict({"table": torch.nn.Embedding(90, 8), "head": torch.nn.Linear(8, 1)})
    sparse = RowwiseAdagrad(model["table"].parameters(), lr=0.5)
    rule = rule_of([sparse, torch.optim.AdamW(model["head"].parameters())], model)
    assert rule.state_keys("table.weight") == ("row_sum",)
    assert rule.state_keys("head.bias") == ("exp_avg", "exp_avg_sq")
    with pytest.raises(UsageError, match="two optimizers train table.weight"):
        rule_of([sparse, torch.optim.SGD(model.parameters())], model)


def test_costs_follow_the_state():
    model = torch.nn.Linear(3, 3)
    rules = [rule_of(OPTIMIZERS[kind](model.parameters()), model) for kind in ("sgd", "momentum", "adam")]
    assert [rule.costs()["weight"] for rule in rules] == [3.0, 5.0, 7.0]


class MyAdam(torch.optim.Adam):
    pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.RMSprop(p), "RMSprop page by page(.|\n)*torch.optim.SGD, Adam"),
        (lambda p: torch.optim.LBFGS(p), "LBFGS page by page"),
        (lambda p: MyAdam(p), "MyAdam page by page"),
        (lambda p: torch.optim.Adam(p, differentiable=True), "differentiable=True"),
        (lambda p: torch.optim.SGD([torch.zeros(3, requires_grad=True)]), "that the model lacks"),
        (lambda p: torch.optim.SGD(p, lr=float("inf")), "finite"),
    ],
)
def test_what_a_server_cannot_apply_is_refused(make, words):
    model = torch.nn.Linear(3, 3)
    with pytest.raises(UsageError, match=words):
        rule_of(make(model.parameters()), model)


def test_step_hooks_are_refused():
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.register_step_pre_hook(lambda *arguments: None)
    with pytest.raises(UsageError, match="step hooks"):
        rule_of(optimizer, model)


def test_settings_that_need_other_state_are_refused():
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = rule_of(optimizer, model)
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(UsageError, match="state that the store does not hold"):
        rule.with_settings(settings_of(optimizer))
    with pytest.raises(UsageError, match="2 parameter groups, the store has 1"):
        rule.with_settings(settings_of(optimizer) * 2)


@pytest.mark.parametrize(
    "damage",
    [{"groups": 3}, {"groups": [{"optimizer": "Shampoo"}]}, {"group_of": {"weight": 4}}, {"groups": [{"lr": 1.0}]}],
)
def test_damaged_rules_are_refused(damage):
    model = torch.nn.Linear(3, 3)
    data = rule_of(torch.optim.SGD(model.parameters()), model).to_json()
    with pytest.raises(StoreError):
        UpdateRule.from_json({**data, **damage})


@pytest.mark.parametrize(
    ("kind", "optimizer", "words"),
    [
        ("rows", lambda p: torch.optim.Adam(p), "Adam cannot train table"),
        ("rows", lambda p: torch.optim.SGD(p, momentum=0.9), "SGD with momentum=0.9"),
        ("parameter", lambda p: RowwiseAdagrad(p), "RowwiseAdagrad trains table"),
        ("buffer", lambda p: torch.optim.SGD(p), "is a buffer"),
    ],
)
def test_optimizers_that_do_not_fit_the_kind_of_push_are_refused(kind, optimizer, words):
    model = torch.nn.Module()
    model.table = torch.nn.Parameter(torch.zeros(8, 4))
    rule = rule_of(optimizer(model.parameters()), model)
    layout = lay_out([TensorSpec("table", (8, 4), kind=kind)], 1)
    with pytest.raises(UsageError, match=words):
        Updater(layout, rule, allocate(layout, rule))


def adam_rule(make=torch.optim.AdamW, **options):
    model = torch.nn.Linear(8, 4)
    return rule_of(make(model.parameters(), lr=0.1, **options), model)


def test_a_directed_tensor_has_no_state_and_takes_steps_as_they_come():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    rule = rule_of(optimizer, model).with_directed(["a.weight"])
    assert rule.state_keys("a.weight") == () and rule.state_keys("a.bias") == ("exp_avg", "exp_avg_sq")
    assert UpdateRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule
    layout, (updater,) = store_of(model, rule, 1, sharded=False)
    before, lanes = model.a.weight.detach().clone(), [torch.randn(29, 37) for _ in range(2)]
    for page in layout.of_tensor("a.weight"):
        updater.apply(page.number, [lane.flatten()[page.start : page.start + page.numel] for lane in lanes])
    value = tensor_view(layout, updater.memory["values"], "a.weight")
    assert torch.allclose(value, before * 0.95 - 0.1 * sum(lanes) / 2, atol=1e-6)
    with pytest.raises(UsageError, match="a.weight is not with the store"):
        state_dict_of([updater], optimizer, model)


def test_a_rule_without_directions_is_written_as_ever():
    assert set(adam_rule().to_json()) == {"groups", "group_of"}


@pytest.mark.parametrize(
    ("make", "options"),
    [(torch.optim.AdamW, {"amsgrad": True}), (torch.optim.Adam, {"weight_decay": 0.1}), (torch.optim.SGD, {})],
)
def test_what_workers_cannot_direct(make, options):
    rule = adam_rule(make, **options)
    assert not rule.can_direct("weight")
    with pytest.raises(StoreError, match="cannot find the direction"):
        rule.with_directed(["weight"])


def test_of_a_directed_tensor_the_rate_may_change_and_the_betas_may_not():
    rule = adam_rule().with_directed(["weight"])
    changed = rule.with_settings(({**rule.groups[0], "lr": 0.2, "weight_decay": 0.3},))
    assert changed.directed == {"weight"} and changed.groups[0]["lr"] == 0.2
    with pytest.raises(UsageError, match="change the direction of weight"):
        rule.with_settings(({**rule.groups[0], "betas": (0.8, 0.99)},))
