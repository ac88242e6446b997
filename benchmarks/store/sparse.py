"""Embedding rows pulled and pushed a second, beside nn.Embedding(sparse=True) with the same optimizer.

    python -m benchmarks.store.sparse [--rows 200000] [--width 64] [--ids 20000] [--rounds 15] [--json]

A step looks up `ids` rows, drawn as words are (a few of them most of the time), takes a given gradient for each and
updates the table. The store pulls each distinct row once, runs the same lookup and backward pass, and pushes the
distinct rows back, into one shard or several. Rounds alternate; ratios are of medians of CPU time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from gradbase.store.layout import lay_out, specs_of_model
from gradbase.store.sparse import RowClient, RowTable
from gradbase.store.update import RowwiseAdagrad, Updater, allocate, rule_of

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
    "rowwise": lambda parameters: RowwiseAdagrad(parameters, lr=0.1),
}
SHARDS = (1, 4)


def plain_step(rows: int, width: int, optimizer: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """nn.Embedding with sparse gradients, in one process."""
    module = torch.nn.Embedding(rows, width, sparse=True)
    update = OPTIMIZERS[optimizer](module.parameters())

    def step(ids: torch.Tensor, gradient: torch.Tensor) -> None:
        module(ids).backward(gradient)
        update.step()
        update.zero_grad()

    return step


def store_client(rows: int, width: int, optimizer: str, shard_count: int) -> RowClient:
    module = torch.nn.Embedding(rows, width)
    rule = rule_of(OPTIMIZERS[optimizer](module.parameters()), module)
    layout = lay_out(specs_of_model(module, rows=["weight"]), shard_count)
    tables = {}
    for shard in range(shard_count):
        updater = Updater(layout, rule, allocate(layout, rule, shard), shard=shard)
        updater.initialize()
        tables[shard] = RowTable(updater, "weight")
        tables[shard].table.normal_()
    return RowClient(layout, "weight", tables)


def store_step(client: RowClient) -> Callable[[torch.Tensor, torch.Tensor], None]:
    def step(ids: torch.Tensor, gradient: torch.Tensor) -> None:
        pulled = client.pull(ids)
        pulled.lookup().backward(gradient)
        client.push(pulled.unique, pulled.gradient)

    return step


def draw(rows: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Ids whose frequency falls about as one over their rank, scattered over the table."""
    ranks = (rows ** torch.rand(count, generator=generator)).long().clamp_(max=rows) - 1
    return ranks * 7919 % rows


def measure(rows: int, width: int, count: int, rounds: int, optimizer: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    clients = {f"store, {n} shards": store_client(rows, width, optimizer, n) for n in SHARDS}
    calls: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]]
    calls = {"nn.Embedding": plain_step(rows, width, optimizer)}
    for name, client in clients.items():
        calls[name] = store_step(client)
        calls[f"{name}: pull"] = lambda ids, gradient, client=client: client.pull(ids)
        calls[f"{name}: push"] = lambda ids, gradient, client=client: client.push(ids, gradient)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        ids, gradient = draw(rows, count, generator), torch.randn(count, width, generator=generator)
        for name, call in calls.items():
            begin = time.process_time()
            call(ids, gradient)
            times[name].append(time.process_time() - begin)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    return [
        {
            "optimizer": optimizer,
            "system": name,
            "rows_per_s": round(count / middle),
            "rate_over_embedding": round(medians["nn.Embedding"] / middle, 2),
        }
        for name, middle in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--ids", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table, ids = (arguments.rows, arguments.width), arguments.ids
    results = [row for name in OPTIMIZERS for row in measure(*table, ids, arguments.rounds, name)]
    if arguments.json:
        print(json.dumps({"benchmark": "sparse", "rows": table[0], "width": table[1], "ids": ids, "results": results}))
        return
    print(f"{ids} ids a step of a table of {table[0]} x {table[1]}, ids a CPU-second")
    for row in results:
        ratio = f"{row['rate_over_embedding']:5.2f} x nn.Embedding's step"
        print(f"{row['optimizer']:8} {row['system']:22} {row['rows_per_s'] / 1e6:6.2f} M/s  {ratio}")


if __name__ == "__main__":
    main()
