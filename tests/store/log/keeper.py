"""A process that logs and checkpoints until it is killed, and says on standard output what was acknowledged.

    keeper.py DIRECTORY SEED

Lines are "log N" (records up to N are durable) and "checkpoint N" (so is checkpoint N). Values after N updates, and the
payload of record N, follow from N, so that whoever reads them knows what must be there.
"""

from __future__ import annotations

import os
import random
import sys

import numpy as np

from gradbase.store.checkpoint import Checkpointer, Source, Tensor, complete_checkpoints, data_file
from gradbase.store.files import DiskFiles
from gradbase.store.log import LogReader, LogWriter, Record, open_log

STORE_ID = b"killed in a loop"
SEGMENT_BYTES = 1 << 18
PAGES, PAGE_BYTES = 24, 1 << 16


def payload(lsn: int) -> bytes:
    return random.Random(lsn).randbytes(lsn * 7919 % 20_000)


def values_after(number: int) -> np.ndarray:
    """Page k has the number of the last update that changed it: every (k + 1)-th changes page k."""
    last = [number - number % (page + 1) for page in range(PAGES)]
    return np.repeat(np.array(last, np.int32), PAGE_BYTES // 4)


def checkpointer_of(files: DiskFiles, values: np.ndarray) -> Checkpointer:
    out = data_file("parameters.safetensors", [Tensor("values", "int32", values.shape)])
    memory = values.view(np.uint8)
    sources = [
        Source(out.name, "values", page * PAGE_BYTES, memory[page * PAGE_BYTES : (page + 1) * PAGE_BYTES], page)
        for page in range(PAGES)
    ]
    return Checkpointer(files, "shard-0000", ["shard-0000"], [out], sources, spare_bytes=4 * PAGE_BYTES)


def main(directory: str, seed: int) -> None:
    dice, files, values = random.Random(seed), DiskFiles(directory), values_after(0)
    checkpointer = checkpointer_of(files, values)
    complete = complete_checkpoints(files)
    number = complete[-1].number if complete else 0
    if complete:
        checkpointer.restore(number)
    appender, _ = open_log(files, "log", store_id=STORE_ID, shard=0, segment_bytes=SEGMENT_BYTES, after=number)
    log = LogWriter(appender, on_durable=lambda lsn: os.write(1, f"log {lsn}\n".encode()))
    for record in LogReader(files, "log", after=number):
        update(checkpointer, values, number := record.lsn)
    while True:
        number += 1
        log.append(Record(number, 2, payload(number), sequence=number))
        update(checkpointer, values, number)
        if dice.random() < 0.2:
            log.wait(number)
        if checkpointer._snapshot is None and dice.random() < 0.2:
            snapshot = checkpointer.snapshot()
            log.wait(number)
            snapshot.start(number, {"lsn": number}, lambda stats: kept(checkpointer, log, stats.number))


def update(checkpointer: Checkpointer, values: np.ndarray, number: int) -> None:
    pages = [page for page in range(PAGES) if number % (page + 1) == 0]
    checkpointer.before_overwrite(pages)
    for page in pages:
        values.reshape(PAGES, -1)[page] = number


def kept(checkpointer: Checkpointer, log: LogWriter, number: int) -> None:
    os.write(1, f"checkpoint {number}\n".encode())
    checkpointer.retire(number)
    log.truncate(min(each.number for each in complete_checkpoints(checkpointer.files)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
