"""The tree of modules: figures that add up, blocks that fold, groups of equal lines."""

from __future__ import annotations

from dataclasses import replace

from gradbase.explain import timeline
from gradbase.explain._groups import choice_groups
from gradbase.explain._report import Choice
from gradbase.explain._tree import folded, module_tree
from tests.explain.plans import blocks, six_measurements
from tests.ir.plans import six_costs, six_operators, six_physical


def test_figures_of_the_six_operator_step() -> None:
    logical, physical, costs = six_operators(), six_physical(), six_costs()
    tree = module_tree(logical, physical, costs, timeline(logical, physical, costs), six_measurements())
    total = tree.figures
    assert (total.forward_us, total.backward_us, total.update_us, total.recompute_us) == (130, 110, 50, 100)
    assert total.measured_us == 200 + 22 + 11 + 11 + 110 + 110 + 55
    assert total.live_bytes == 1200 + 3136 + 32
    assert (total.recomputed_bytes, total.paged_bytes) == (1000, 1400)
    linear = tree.children[0]
    assert (linear.name, linear.operators, linear.figures.paged_bytes) == ("fc1", 3, 400)
    assert linear.figures.kept_bytes == 400  # the gradient, from backward to the update


def test_equal_blocks_fold_into_one() -> None:
    logical, physical, costs = blocks(6)
    tree = folded(module_tree(logical, physical, costs, timeline(logical, physical, costs)))
    assert [(child.name, child.count) for child in tree.children] == [("h.0 … h.5", 6)]
    assert tree.children[0].figures.forward_us == 6
    assert tree.children[0].operators == 12


def test_blocks_that_differ_stay_apart() -> None:
    logical, physical, costs = blocks(6)
    operators = list(logical.operators)
    operators[2] = replace(operators[2], target="aten.gelu.default")
    changed = replace(logical, operators=tuple(operators))
    tree = folded(module_tree(changed, physical, costs, timeline(changed, physical, costs)))
    (layers,) = tree.children
    assert [(child.name, child.count) for child in layers.children] == [("0 … 1", 2), ("2", 1), ("3 … 5", 3)]


def test_folded_children_keep_their_names_and_add_up() -> None:
    logical, physical, costs = blocks(4)
    deep = replace(logical, operators=tuple(replace(o, module=f"{o.module}.mlp.0") for o in logical.operators))
    tree = folded(module_tree(deep, physical, costs, timeline(deep, physical, costs)))
    assert [(depth, node.name, node.count) for depth, node in tree.walk()] == [
        (0, "step", 1),
        (1, "h.0 … h.3", 4),
        (2, "mlp.0", 1),
    ]
    assert tree.children[0].children[0].figures.backward_us == 4


def test_equal_decisions_are_one_line() -> None:
    choices = [
        Choice(f"gelu_{n}" if n else "gelu", f"h.{n}.mlp.1", 100, "recompute", "a", "b", 1.0, "") for n in range(3)
    ]
    choices.append(Choice("exp_avg of h.2.mlp.0.weight", "h.2.mlp.0", 500, "page", "a", "b", 1.0, ""))
    groups = choice_groups(choices)
    assert [(group.name, group.module, len(group.members)) for group in groups] == [
        ("exp_avg of h.2.mlp.0.weight", "h.2.mlp.0", 1),
        ("gelu_* ×3", "h.*.mlp.1", 3),
    ]
