"""What the coordinator decides under bsp (where to begin, who has which lane) and under ssp and asp (who has which
batch).
"""

from __future__ import annotations

from itertools import islice

from gradbase.store.machine import notes
from gradbase.store.machine._coordinator import Coordinator, Member, Phase
from gradbase.store.machine._ranges import as_ranges, holds, numbers_in, subtract, union
from gradbase.store.machine.consistency import Job
from gradbase.store.machine.messages import LeaseReply, LeaseRequest, Open, Ranges, Send, ShardReport

CHECKPOINT_LEAD_STEPS = 2  # shards are at most one step apart, and the coordinator hears of steps late
TERM_SHIFT = 20  # numbers of checkpoints under ssp and asp: the term, then a count within it


class StepCoordinator(Coordinator):
    """bsp: all begin at the highest version that every shard can reach."""

    def _plan(self) -> list[Open]:
        version = self._begin_at()
        self._share_lanes()
        for member in self.members.values():
            member.begin = version
            member.seq = 0
            member.done = -1
        members = tuple((member.worker, member.session, version) for member in self.members.values())
        return [Open(self.term, server.incarnation, version, members) for server in self.shards]

    def _begin_at(self) -> int:
        reports = [self._shard_reports[shard] for shard in range(len(self.shards))]
        extended = [self._extended(report) for report in reports]
        candidates = {high - 1 for report in reports for _, high in report.reach} | set(extended)
        return max(
            version
            for version in candidates
            if all(_reaches(report, most, version) for report, most in zip(reports, extended, strict=True))
        )

    def _extended(self, report: ShardReport) -> int:
        """The version this shard reaches if the sessions send again what they retain for it."""
        retained = {
            (lane, step) for r in self._reports.values() for shard, lane, step in r.retained if shard == report.shard
        }
        version = report.complete
        while all((lane, version) in retained for lane in range(self.job.lanes)):
            version += 1
        return version

    def _share_lanes(self) -> None:
        """Evenly; whoever has a lane keeps it as far as that goes."""
        members = sorted(self.members.values(), key=lambda member: member.worker)
        most = -(-self.job.lanes // len(members))
        kept = {member.worker: list(member.lanes[:most]) for member in members}
        taken = {lane for lanes in kept.values() for lane in lanes}
        for lane in (lane for lane in range(self.job.lanes) if lane not in taken):
            kept[min(kept, key=lambda worker: (len(kept[worker]), worker))].append(lane)
        for member in members:
            member.lanes = tuple(sorted(kept[member.worker]))

    def _lease_request(self, message: LeaseRequest) -> None:
        """No leases under bsp."""

    def _hear(self, member: Member) -> None:
        """Its version is all there is to hear."""

    def _is_done(self) -> bool:
        """Whoever has read the last version has it from all shards; with a log it must be durable too."""
        durable = self.job.steps if self.job.durability == "wal" else -1
        return any(member.seq >= self.job.steps and member.done >= durable for member in self.members.values())

    def _next_checkpoint(self) -> int:
        furthest = max((member.seq for member in self.members.values()), default=0)
        furthest = max(furthest, *(server.step for server in self.shards))
        return min(furthest + CHECKPOINT_LEAD_STEPS, self.job.steps)


def _reaches(report: ShardReport, extended: int, version: int) -> bool:
    return holds(report.reach, version) or report.complete <= version <= extended


class ClockCoordinator(Coordinator):
    """ssp, asp: shards stay where they are; batches that some shard lacks and no session holds are leased again."""

    def __init__(self, job: Job, note: notes.Notes | None = None) -> None:
        super().__init__(job, note)
        self._free: Ranges = ()
        self._checkpoints = 0

    def _plan(self) -> list[Open]:
        self._free = self._unused()
        clocks = {worker: self._clock(worker) for worker in self.members}
        for worker, member in self.members.items():
            member.begin = member.seq = clocks[worker]
            member.lease = 0
            member.leases = {0: self._reports[worker].held}
        return [self._open_of(shard, clocks) for shard in range(len(self.shards))]

    def _open_of(self, shard: int, clocks: dict[int, int]) -> Open:
        members = tuple(
            (worker, member.session, self._base(shard, worker, clocks[worker]))
            for worker, member in self.members.items()
        )
        return Open(self.term, self.shards[shard].incarnation, 0, members)

    def _base(self, shard: int, worker: int, clock: int) -> int:
        """The first sequence number this shard is to expect: a new session's first, or the oldest that can be sent
        again.
        """
        report = self._reports[worker]
        return min(report.oldest[shard], clock) if report.next_seq else clock

    def _clock(self, worker: int) -> int:
        """Where a member's clock stands; a new one begins with the slowest, and after all that was pushed in its
        slot.
        """
        if self._reports[worker].next_seq:
            return self._reports[worker].next_seq
        slowest = min((report.next_seq for report in self._reports.values() if report.next_seq), default=1)
        return max(slowest, *(report.clock[worker] for report in self._shard_reports.values()))

    def _unused(self) -> Ranges:
        everything: Ranges = ((0, self.job.batches),) if self.job.batches else ()
        lacking = union(*(subtract(everything, report.used) for report in self._shard_reports.values()))
        held = as_ranges(batch for report in self._reports.values() for batch in report.held)
        return subtract(lacking, held)

    def _lease_request(self, message: LeaseRequest) -> None:
        member = self._member(message.worker, message.session)
        if member is None or message.term != self.term or self.phase is not Phase.OPEN:
            return
        if message.lease == member.lease + 1:
            batches = self._take_free()
            if batches:
                member.lease = message.lease
                member.leases[message.lease] = batches
                if self._note is not None:
                    self._note(notes.Leased(self.term, member.worker, member.session, batches))
        else:
            batches = member.leases.get(message.lease, ())
        reply = LeaseReply(self.term, member.session, message.lease, batches)
        self._out.append(Send(("worker", member.worker), reply))

    def _take_free(self) -> tuple[int, ...]:
        batches = tuple(islice(numbers_in(self._free), self.job.limits.lease_batches))
        self._free = subtract(self._free, as_ranges(batches))
        return batches

    def _hear(self, member: Member) -> None:
        for lease in [lease for lease in member.leases if lease <= member.done]:
            del member.leases[lease]

    def _is_done(self) -> bool:
        return not self._free and not any(any(member.leases.values()) for member in self.members.values())

    def _next_checkpoint(self) -> int:
        self._checkpoints += 1
        return (self.term << TERM_SHIFT) | self._checkpoints
