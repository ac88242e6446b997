"""The process side of a worker: does what the steward says, and decides nothing.

    steward -> servant                          servant -> steward
    ("seek", number)                            ("ready",): the stream is read up to there, lanes may come
    ("compute", ticket, lane, number)           ("computed", ticket, samples, loss, time_us),
                                                or ("ended", ticket, length): there are so many batches;
                                                ("planned", figures of the plan, measured peak) before it,
                                                whenever one of these is new
    ("apply", op, shard, lanes)                 ("done", op)
    ("fetch", op, shard)                        ("done", op)
    ("keep", op, lane)                          ("done", op)
    ("stop",)                                   ("failed", words): its recipe raised an exception, it ends
                                                ("beat",): it is alive, whatever takes it so long

A servant begins with ("hello", process id, whether it can apply, number).

A servant may vanish at any moment. What it was computing is computed again by another, into the same buffers; what it
was applying is completed by another, from the page at which it stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from torch import nn

from gradbase.cluster.channel import Channel, Gone
from gradbase.cluster.worker import Buffer, Learner, StreamEnded, samples_of


class Memory(Protocol):
    """Where the parameters of a servant's model lie, and how they reach the others'."""

    can_apply: bool  # whether the servant reaches the pages themselves; one that does not is never asked to apply

    def buffers(self, lane: int) -> Mapping[nn.Parameter, Buffer]:
        """Where the gradients of a lane go."""

    def before(self, lane: int, number: int) -> None:
        """Called before the gradient of a micro-batch is computed: what the model reads must be in place."""

    def complete(self, lane: int, parameter: nn.Parameter) -> None:
        """Called within the backward pass, when the gradient of one parameter is in its buffer."""

    def after(self, lane: int) -> None:
        """Called when all gradients of a lane were complete; they are where they are applied when this returns."""

    def apply(self, op: int, shard: int, lanes: Sequence[int]) -> None:
        """Reduce what the lanes pushed to a shard, in that order, and update its pages."""

    def fetch(self, shard: int) -> None:
        """Copy a shard's values to where the model reads them."""

    def keep(self, lane: int) -> None:
        """Put what the codecs have left out of a lane's gradients to where checkpoints are taken from."""


def serve(channel: Channel, learner: Learner, memory: Memory, number: int = 0) -> bool:
    """Do what is asked until told to stop, or until the steward is gone: then False. `number`: what else it is
    known by.
    """
    try:
        _serve(channel, learner, memory, number)
    except Gone:
        return False
    return True


def _serve(channel: Channel, learner: Learner, memory: Memory, number: int) -> None:
    channel.send("hello", os.getpid(), memory.can_apply, number)
    while True:
        verb, *rest = channel.receive()
        if verb == "stop":
            return
        if verb == "seek":
            learner.seek(*rest)
            channel.send("ready")
        elif verb == "compute":
            _compute(channel, learner, memory, *rest)
        elif verb == "apply":
            memory.apply(*rest)
            channel.send("done", rest[0])
        else:
            assert verb in ("fetch", "keep"), f"a steward does not say {verb!r}"
            (memory.fetch if verb == "fetch" else memory.keep)(rest[1])
            channel.send("done", rest[0])


def _compute(channel: Channel, learner: Learner, memory: Memory, ticket: int, lane: int, number: int) -> None:
    began = time.perf_counter()
    try:
        batch = learner.batch(number)
    except StreamEnded as end:
        channel.send("ended", ticket, end.length)
        return
    memory.before(lane, number)
    loss = learner.gradient(number, batch, memory.buffers(lane), partial(memory.complete, lane))
    memory.after(lane)
    _tell_plan(channel, learner)
    channel.send("computed", ticket, samples_of(batch), loss, (time.perf_counter() - began) * 1e6)


def _tell_plan(channel: Channel, learner: Learner) -> None:
    """Say what was planned, and what is measured of it, if that is news."""
    if learner.figures is None:
        return
    news = [learner.figures, learner.measured_peak_bytes]
    if news != learner.told:
        learner.told = news
        channel.send("planned", *news)
