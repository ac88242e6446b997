"""Every way to run an operator gives the bits that eager gives, in the frame that was planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradbase as gb
from gradbase import compiled
from gradbase.buffer import Allocation
from gradbase.catalog import Catalog
from gradbase.executor._lowering import native_out
from gradbase.executor._traits import Trait, Workspace, pack_workspace
from tests.executor.test_zoo_planned import planned_run
from tests.zoo import ZOO, eager_run

aten = torch.ops.aten


@pytest.mark.parametrize("target", [aten.convolution.default, aten.native_layer_norm.default, aten.mse_loss.default])
def test_generated_out_forms_are_not_used(target: Any) -> None:
    assert native_out(target) is None


def test_native_out_forms_are_found() -> None:
    found = native_out(aten.nll_loss_forward.default)
    assert found is not None and found[1] == ("output", "total_weight")


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (aten._log_softmax, (-1, False)),
        (aten._softmax, (-1, False)),
        (aten._log_softmax_backward_data, (-1, torch.float32)),
        (aten._softmax_backward_data, (-1, torch.float32)),
    ],
)
@pytest.mark.parametrize("shape", [(3, 5), (64, 1000), (7, 4099), (2, 3, 129)])
def test_row_by_row_kernels_may_write_over_their_argument(kernel: Any, arguments: Any, shape: tuple[int, ...]) -> None:
    """What the planner's in-place pairs rely on; a torch that breaks it must not pass unseen."""
    given = torch.randn(shape)
    others = (torch.randn(shape).log_softmax(-1),) if "backward" in str(kernel) else ()
    expected = kernel.default(given, *others, *arguments)
    kernel.out(given, *others, *arguments, **{kernel.out._schema.arguments[-1].name: given})
    assert torch.equal(given, expected)


def allocation(index: int, nbytes: int, born: int, freed: int) -> Allocation:
    return Allocation(index, nbytes, 0, freed > 0, born, freed)


def test_a_workspace_reuses_what_is_freed_inside_the_kernel() -> None:
    log = [allocation(0, 8192, 1, 4), allocation(1, 8192, 2, 3), allocation(2, 8192, 5, 6), allocation(3, 8192, 7, 0)]
    workspace = pack_workspace(log)
    assert workspace.nbytes == 16384
    assert [index for index, _, _ in workspace.places] == [0, 1, 2]


def test_what_is_small_or_outlives_the_kernel_is_not_workspace() -> None:
    assert pack_workspace([allocation(0, 100, 1, 2), allocation(1, 1 << 20, 3, 0)]) == Workspace()


def test_traits_survive_the_catalogue() -> None:
    trait = Trait(
        served=(0, None),
        layouts=(("float32", (2, 3), (3, 1)), None),
        workspace=Workspace(4096, ((1, 4096, 0),)),
        native=False,
        created=(("exp_avg", 2),),
    )
    assert Trait.known(trait.encoded("frames"))
    assert Trait.decoded(trait.encoded("frames")) == trait


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 0}'])
def test_details_of_another_format_count_as_not_measured(text: str) -> None:
    assert not Trait.known(text)


@pytest.mark.parametrize("name", ["unet", "lstm", "transformers_gpt2", "optimizer_adamw"])
def test_without_a_compiler_results_are_copied_and_equal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in ZOO:
        pytest.skip(f"{name} needs an extra that is not installed")
    monkeypatch.setattr(compiled, "load_frames", lambda: None)
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        assert planned_run(ZOO[name], 3, catalog, tmp_path, None) == eager_run(ZOO[name], 3)
        _, rows = catalog.query("SELECT DISTINCT device FROM statistics")
    assert rows == [("cpu/copied",)]


def test_the_plan_survives_each_rule_switched_off(tmp_path: Path) -> None:
    """The same model with eager PyTorch, without any rule, with each rule off and with all on."""
    from gradbase.planner import RULES

    names = [rule.name for rule in RULES]
    expected = eager_run(ZOO["mlp_dropout"], 3)
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        for rules in ([], names, *([n for n in names if n != off] for off in names)):
            case = ZOO["mlp_dropout"]
            torch.manual_seed(0)
            model = case.model()
            optimizer = case.optimizer(model)
            losses = []
            step = None
            for batch, _ in zip(case.batches(), range(3), strict=False):
                step = step or gb.compile(
                    model, case.loss, optimizer, batch, rules=rules, catalog=catalog, spill=tmp_path
                )
                losses.append(step(batch).item())
            assert losses == expected[0], rules


def test_a_tied_weight_is_updated_once(tmp_path: Path) -> None:
    embedding = nn.Embedding(16, 8)
    head = nn.Linear(8, 16, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ids = torch.arange(16)
    with gb.compile(
        model, lambda m, b: F.cross_entropy(m(b), b), optimizer, ids, catalog=tmp_path / "c.sqlite", spill=tmp_path
    ) as step:
        updates = [op for op in step.logical.operators if op.target == "gradbase.update.SGD"]
        assert sum(s.kind == "parameter" for s in step.logical.storages) == len(updates) == 1
