"""Batches of every make: their tensors in order, the rest to compare, and the same thing around other tensors."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from gradbase.capture import take_apart
from gradbase.common.errors import UsageError


@dataclass(frozen=True)
class Rows:
    rows: torch.Tensor
    weight: float


class Pair(NamedTuple):
    left: Any
    right: Any


def batch(value: float = 0.0, *, weight: float = 1.0) -> Any:
    tensors = [torch.full((2,), value + i) for i in range(4)]
    fields = UserDict({"ids": tensors[1], "name": "a", "none": None})
    return {"rows": Rows(tensors[0], weight), "rest": Pair(fields, [SimpleNamespace(x=tensors[2], n=3), tensors[3]])}


def test_tensors_are_found_in_order_and_replaced() -> None:
    given = take_apart(batch())
    assert [t[0].item() for t in given.tensors] == [0, 1, 2, 3]
    again = given.around([t + 10 for t in given.tensors])
    assert isinstance(again["rows"], Rows) and again["rows"].rows[0] == 10 and again["rows"].weight == 1.0
    fields, (namespace, last) = again["rest"]
    assert isinstance(fields, UserDict) and fields["ids"][0] == 11 and fields["name"] == "a"
    assert namespace.x[0] == 12 and namespace.n == 3 and last[0] == 13
    assert given.tensors[0][0] == 0, "the batch itself is left alone"


def test_the_rest_is_all_but_the_tensors() -> None:
    assert take_apart(batch(1.0)).rest == take_apart(batch(2.0)).rest
    assert take_apart(batch(weight=1.0)).rest != take_apart(batch(weight=2.0)).rest
    assert take_apart([torch.ones(1), 1]).rest != take_apart([torch.ones(1), True]).rest
    assert take_apart([float("nan")]).rest == take_apart([float("nan")]).rest


@pytest.mark.parametrize("value", [np.zeros(3), object(), (i for i in ()), torch.nn.Identity(), print])
def test_what_changes_unseen_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"(?s)would take for constant.*make a tensor of it"):
        take_apart({"x": [value]})


def test_sparse_tensors_are_refused() -> None:
    with pytest.raises(UsageError, match="layout torch.sparse_coo"):
        take_apart([torch.eye(2).to_sparse()])
