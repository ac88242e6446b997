"""A small store on a real disk, trained in this process: a model, its updater, checkpoints and logs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gradbase.store.checkpoint import Checkpointer, pack_state, shard_owners, shard_sources, store_files
from gradbase.store.codec import decode, encode, parse_codec
from gradbase.store.files import DiskFiles
from gradbase.store.layout import lay_out, specs_of_model
from gradbase.store.log import COORDINATOR, Appender, open_log, to_record
from gradbase.store.logged import encoded_update
from gradbase.store.machine.messages import CheckpointRecord, CheckpointState, PushRecord, StepRecord
from gradbase.store.update import Updater, allocate, rule_of

STORE_ID = bytes(range(16))
LANES = 2


class Net(torch.nn.Module):
    """Tied weights, a channels-last convolution, a buffer, and sizes that fill no block."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 24)
        self.convolution = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        self.norm = torch.nn.BatchNorm1d(24)
        self.head = torch.nn.Linear(24, 50, bias=False)
        self.head.weight = self.embedding.weight


class SmallStore:
    """`consistency` "bsp" logs commands or updates as `physical` says, anything else logs pushes. Gradients go through
    `codec` before they are applied and logged.
    """

    def __init__(
        self, root: Path, *, shards: int = 2, consistency: str = "bsp", physical: bool = False, codec: str = "none"
    ) -> None:
        torch.manual_seed(0)
        self.files, self.model, self.consistency, self.physical = DiskFiles(root), Net(), consistency, physical
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.rule = rule_of(optimizer, self.model)
        self.layout = lay_out(specs_of_model(self.model), shards, page_bytes=1024)
        self.updater = Updater(self.layout, self.rule, allocate(self.layout, self.rule))
        self.updater.initialize()
        trained = [p.number for p in self.layout.pages if self.rule.settings(self.layout.tensors[p.tensor].name)]
        self.codecs = dict.fromkeys(trained if codec != "none" else (), parse_codec(codec))
        self._fill()
        self.members = shard_owners(shards)
        self.checkpointers = [self._checkpointer(shard) for shard in range(shards)]
        self.logs: list[Appender] = []
        self.step = 0
        manifest = {
            "format": 1, "store_id": STORE_ID.hex(), "lanes": LANES, "consistency": consistency, "staleness_steps": 0,
            "durability": "wal", "seed": 0, "threads": 1, "layout": self.layout.to_json(), "rule": self.rule.to_json(),
        }  # fmt: skip
        root.mkdir(parents=True, exist_ok=True)
        (root / "MANIFEST.json").write_text(json.dumps(manifest))

    def open(self) -> SmallStore:
        shards = range(self.layout.shard_count)
        self.logs = [open_log(self.files, f"log/{k}", store_id=STORE_ID, shard=k)[0] for k in shards]
        self.coordinator = open_log(self.files, "log/coordinator", store_id=STORE_ID, shard=COORDINATOR)[0]
        return self

    def close(self) -> None:
        for log in [*self.logs, self.coordinator]:
            log.close()

    def train(self, steps: int) -> SmallStore:
        """Update every page from random gradients of every lane, and log it."""
        for _ in range(steps):
            for shard, log in enumerate(self.logs):
                pushes = [self._gradients(shard) for _ in range(LANES if self.consistency == "bsp" else 1)]
                log.append([to_record(self._content(log, shard, pushes), _Raw())])
                self._apply(shard, pushes)
            self.step += 1
        return self

    def checkpoint(self, retire: bool = False) -> SmallStore:
        lsns = tuple(log.next_lsn - 1 for log in self.logs)
        for shard, checkpointer in enumerate(self.checkpointers):
            state = CheckpointState(
                self.step, lsns[shard], self.step, (self.step,) * LANES, (1, 2), ((0, 2 * self.step),)
            )
            checkpointer.snapshot().write(self.step, pack_state(state))
        self.coordinator.append([to_record(CheckpointRecord(self.coordinator.next_lsn, self.step, lsns), _Raw())])
        if retire:
            self.checkpointers[0].retire(self.step, keep=1)
        return self

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The model's state dict with the values of the store."""
        found = {}
        for spec in self.layout.tensors:
            pages = [self.updater.value(page) for page in self.layout.of_tensor(spec.name)]
            flat = torch.cat(pages)
            value = flat.view(spec.shape) if spec.stride is None else flat.as_strided(spec.shape, spec.stride)
            found |= dict.fromkeys((spec.name, *spec.aliases), value)
        return found

    def _fill(self) -> None:
        state = self.model.state_dict()
        for spec in self.layout.tensors:
            value = state[spec.name]
            flat = value.reshape(-1) if spec.stride is None else value.as_strided((spec.numel,), (1,))
            for page in self.layout.of_tensor(spec.name):
                self.updater.assign(page.number, flat[page.start : page.start + page.numel])

    def _checkpointer(self, shard: int) -> Checkpointer:
        files = store_files(self.layout, self.rule)
        sources = [s for s in shard_sources(self.layout, self.updater) if self.layout.pages[s.key].shard == shard]
        return Checkpointer(self.files, self.members[shard], self.members, files, sources)

    def _gradients(self, shard: int) -> list[torch.Tensor]:
        """What a lane pushes, page by page."""
        pages = [self.updater.value(page) for page in self.layout.of_shard(shard)]
        found = [torch.randn(len(v)) if v.is_floating_point() else v + 1 for v in pages]
        for index, page in enumerate(self.layout.of_shard(shard)):
            if page.number in self.codecs:
                found[index] = decode(encode(self.codecs[page.number], found[index]), page.numel)
        return found

    def _content(self, log: Appender, shard: int, pushes: Sequence[Sequence[torch.Tensor]]) -> StepRecord | PushRecord:
        raw = [b"".join(page.numpy().tobytes() for page in push) for push in pushes]
        update = encoded_update(self.layout, shard, self.codecs, raw)
        if self.consistency != "bsp":
            return PushRecord(log.next_lsn, log.incarnation, 1, 0, 1, self.step, self.step, update)
        batches = tuple(range(self.step * LANES, (self.step + 1) * LANES))
        return StepRecord(log.next_lsn, log.incarnation, 1, self.step, batches, 0, update if self.physical else None)

    def _apply(self, shard: int, pushes: Sequence[Sequence[torch.Tensor]]) -> None:
        pages = self.layout.of_shard(shard)
        self.checkpointers[shard].before_overwrite(page.number for page in pages)
        for index, page in enumerate(pages):
            parts = [push[index] for push in pushes]
            if self.rule.settings(self.layout.tensors[page.tensor].name) is None:
                self.updater.assign(page.number, parts[0])
            else:
                self.updater.apply(page.number, parts, 1 / LANES)


class _Raw:
    def to_bytes(self, update: Any) -> Any:
        return update
