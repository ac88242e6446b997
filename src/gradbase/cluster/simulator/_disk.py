"""A disk as bad as the store's protocol allows: what is not synced may be lost, in part or whole, and space may run
out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from gradbase.store.machine.messages import CheckpointState, Payload, Record


@dataclass
class Disk:
    """The storage of one shard or of the coordinator. `owner` is the incarnation that opened it last."""

    owner: int = 0
    full: bool = False
    records: list[Record] = field(default_factory=list)
    synced: int = 0  # how many of the records are durable
    next_lsn: int = 0  # 0: whatever comes first
    refused: bool = False
    checkpoints: dict[int, tuple[CheckpointState, Payload]] = field(default_factory=dict)

    def open(self, random: Random, lose: bool) -> int:
        """Hand out the next incarnation. `lose`: of what was not synced only a prefix is left, the last record torn."""
        if lose:
            kept = random.randint(self.synced, len(self.records))
            del self.records[kept:]
            self.next_lsn = self.records[-1].lsn + 1 if self.records else 0
        self.synced = len(self.records)
        self.refused = False
        self.owner += 1
        return self.owner

    def append(self, record: Record) -> bool:
        """Whether it was taken: not when the disk is full, and then nothing until the refused record comes again."""
        self.next_lsn = self.next_lsn or record.lsn
        if self.full or (self.refused and record.lsn != self.next_lsn):
            self.refused = True
            return False
        assert self.next_lsn == record.lsn, f"LSN {record.lsn} where {self.next_lsn} should follow"
        self.refused = False
        self.next_lsn = record.lsn + 1
        self.records.append(record)
        return True

    def sync(self, lsn: int) -> None:
        while self.synced < len(self.records) and self.records[self.synced].lsn <= lsn:
            self.synced += 1

    def records_after(self, lsn: int) -> list[Record]:
        return [record for record in self.records if record.lsn > lsn]

    def retire(self, number: int, lsn: int) -> None:
        for old in [old for old in self.checkpoints if old < number]:
            del self.checkpoints[old]
        before = len(self.records)
        self.records = self.records_after(lsn)
        self.synced -= before - len(self.records)
