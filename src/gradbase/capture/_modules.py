"""Which module and which line of the user's code an operator belongs to, forward and backward."""

from __future__ import annotations

import bisect
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import nn
from torch.nn.modules import module as nn_module

_TORCH_ROOT = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_PYTHON_ROOT = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_OWN_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def is_user_file(filename: str) -> bool:
    """Whether a line in this file was written by the user (or a model library), not by torch, gradbase or Python."""
    if filename.startswith(_PYTHON_ROOT) and "site-packages" not in filename:
        return False
    return not filename.startswith((_TORCH_ROOT, _OWN_ROOT, "<"))


def user_line() -> str:
    """The innermost line of user code on the present stack, as "model.py:41"; "" if there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if is_user_file(frame.f_code.co_filename):
            return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def user_frame(trace: TracebackType | None) -> str | None:
    """The innermost line of user code in a traceback, with its text; None if there is none."""
    frames = [f for f in traceback.extract_tb(trace) if is_user_file(f.filename)]
    if not frames:
        return None
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"


class ModuleStack:
    """Annotates every traced node with module, source line and phase through fx's "custom" metadata.

    In the forward pass, global module hooks keep the innermost module's name. Autograd numbers its nodes as
    the forward pass creates them, so an autograd node belongs to the module (and line) that was current when
    its number was given out; a pre-hook on each autograd node restores both during the backward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(child): name for name, child in model.named_modules()}
        self._stack = [""]
        self._numbers: list[int] = []
        self._places: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        enter = nn_module.register_module_forward_pre_hook(self._enter)
        leave = nn_module.register_module_forward_hook(self._leave, always_call=True)
        try:
            with fx_traceback.preserve_node_meta():
                self._annotate("forward")
                yield
        finally:
            enter.remove()
            leave.remove()

    def _enter(self, child: nn.Module, args: Any) -> None:
        self._stack.append(self._names.get(id(child), self._stack[-1]))
        self._annotate("forward")

    def _leave(self, child: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()
        self._annotate("forward")

    def note(self) -> None:
        """Called for each forward operator: remember where autograd's next number is given out."""
        line = user_line()
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._places.append((self._stack[-1], line))
        fx_traceback.current_meta["custom"] = {"module": self._stack[-1], "source": line, "phase": "forward"}

    def _annotate(self, phase: str) -> None:
        fx_traceback.current_meta["custom"] = {"module": self._stack[-1], "source": "", "phase": phase}

    def follow_backward(self, root: torch.Tensor) -> None:
        """Hook every autograd node that leads to `root`, so that backward operators carry its place."""
        self._annotate("backward")
        seen: set[Any] = set()
        todo = [root.grad_fn]
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            node.register_prehook(self._restorer(*self._place(node)))
            todo.extend(following for following, _ in node.next_functions)

    def _place(self, node: Any) -> tuple[str, str]:
        # A node takes its number just before its operator is dispatched, so the operator saw a larger one.
        index = bisect.bisect_right(self._numbers, node._sequence_nr())
        return self._places[index] if index < len(self._places) else ("", "")

    @staticmethod
    def _restorer(module: str, line: str) -> Any:
        def restore(grads: Any) -> None:
            fx_traceback.current_meta["custom"] = {"module": module, "source": line, "phase": "backward"}

        return restore
