"""What codecs cost: bytes a second in and out, bytes on the wire, and the loss a small GPT reaches with them.

    python -m benchmarks.store.codecs [--steps 300,800] [--seeds 0] [--lanes 2] [--codecs none,int8,topk:0.01:60]
                                      [--lr 0.002] [--speeds-only] [--json]

The model is that of examples/gpt_stdlib.py, smaller. The lanes are computed one after the other in this process; each
has a `Compressor` with its own residuals and moments, as a worker has, and the server decodes, reduces in lane order
and applies AdamW page by page. Small tensors (biases, norms) go as in a job: as they are, or beside topk and onebit as
int8. The loss is the mean over held-out batches; every codec sees the same batches from the same parameters, and
`loss_ratio` is over the first codec's loss with the same steps and seed. `bytes_ratio` is over the whole run, warm-up
and headers included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from typing import Any

import torch

from examples import gpt_stdlib as gpt
from gradbase.cluster.codecs import Codecs
from gradbase.store.codec import Codec, Compressor, decode, measure_speeds, parse_codec
from gradbase.store.layout import lay_out, specs_of_model, tensor_view
from gradbase.store.update import Updater, allocate, rule_of, settings_of

HELD_OUT = 8
CODECS = "none,bf16,int8,topk:0.01,topk:0.01:60:gradients,onebit,onebit:60:gradients"
LAYERS, WIDTH, SEQUENCES, LENGTH = 2, 128, 8, 96


def shrink() -> None:
    """A model of 0.5 million parameters, which two cores train in minutes."""
    gpt.LAYERS, gpt.WIDTH, gpt.SEQUENCES, gpt.LENGTH = LAYERS, WIDTH, SEQUENCES, LENGTH


class Training:
    """A store of one shard and its lanes, in one process."""

    def __init__(self, codec: Codec, lanes: int, learning_rate: float = 2e-3, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = gpt.model()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, weight_decay=0.1)
        rule = rule_of(self.optimizer, self.model)
        self.layout = lay_out(specs_of_model(self.model, costs=rule.costs()), 1)
        rule = Codecs(codec).directing(self.layout, rule)
        memory = allocate(self.layout, rule)
        self.updater = Updater(self.layout, rule, memory)
        for name, parameter in self.model.named_parameters():
            view = tensor_view(self.layout, memory["values"], name)
            parameter.data = view.copy_(parameter.data)
        codecs = Codecs(codec).of_pages(self.layout, rule, lanes)
        self.lanes = [Compressor(codecs) for _ in range(lanes)]
        self.step_count = 0

    def step(self, batches: list[torch.Tensor]) -> None:
        for lane in self.lanes:
            lane.step, lane.rate = self.step_count, self.optimizer.param_groups[0]["lr"]
        pushed = [self.push(lane, batch) for lane, batch in zip(self.lanes, batches, strict=True)]
        self.updater.set_settings(settings_of(self.optimizer))
        for page in self.layout.pages:
            self.updater.apply(page.number, [lane[page.number] for lane in pushed])
        self.step_count += 1

    def push(self, lane: Compressor, batch: torch.Tensor) -> dict[int, torch.Tensor]:
        """The gradients of a micro-batch as they arrive at the server, by page."""
        self.model.zero_grad()
        gpt.loss(self.model, batch).backward()
        gradients = {name: p.grad.reshape(-1) for name, p in self.model.named_parameters() if p.grad is not None}
        arrived = {}
        for page in self.layout.pages:
            part = gradients[self.layout.tensors[page.tensor].name][page.start : page.start + page.numel]
            arrived[page.number] = decode(lane.encode(page.number, part), page.numel).clone()
        return arrived

    @torch.no_grad()
    def loss(self, batches: list[torch.Tensor]) -> float:
        return float(sum(gpt.loss(self.model, batch) for batch in batches) / len(batches))


def train(codec: Codec, steps: int, lanes: int, learning_rate: float, seed: int = 0) -> dict[str, Any]:
    """Train from the same start on the same batches; the held-out loss at the end and all bytes sent."""
    source = gpt.corpus()
    generator = torch.Generator().manual_seed(1 + seed)
    held_out = [draw(source, generator) for _ in range(HELD_OUT)]
    training = Training(codec, lanes, learning_rate, seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, steps)
    begin = time.process_time()
    for _ in range(steps):
        training.step([draw(source, generator) for _ in range(lanes)])
        training.optimizer._opt_called = True  # the server stepped; the schedule would warn that nobody did
        schedule.step()
    raw, sent = (sum(getattr(lane, key) for lane in training.lanes) for key in ("raw_nbytes", "sent_nbytes"))
    return {
        "codec": str(codec),
        "steps": steps,
        "seed": seed,
        "loss": round(training.loss(held_out), 4),
        "bytes_ratio": round(raw / sent, 2) if sent else None,
        "cpu_s": round(time.process_time() - begin, 1),
    }


def draw(source: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(len(source) - LENGTH - 1, (SEQUENCES, 1), generator=generator)
    return source[starts + torch.arange(LENGTH + 1)].long()


def speeds() -> list[dict[str, Any]]:
    measured = measure_speeds()
    return [
        {
            "codec": name,
            "encode_bytes_per_s": round(speed.encode_bytes_per_s),
            "decode_bytes_per_s": round(speed.decode_bytes_per_s),
            "bytes_ratio": round(1 / speed.ratio, 2),
        }
        for name, speed in measured.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=_numbers, default=[300], help="one run for each, as in 300,800")
    parser.add_argument("--seeds", type=_numbers, default=[0])
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--codecs", default=CODECS)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--speeds-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shrink()
    result: dict[str, Any] = {"benchmark": "codecs", "speeds": speeds(), "training": []}
    print_speeds(result["speeds"])
    codecs = [parse_codec(text) for text in arguments.codecs.split(",")]
    for steps, seed in () if arguments.speeds_only else itertools.product(arguments.steps, arguments.seeds):
        first = None
        for codec in codecs:
            row = train(codec, steps, arguments.lanes, arguments.lr, seed)
            first = first or row["loss"]
            row["loss_ratio"] = round(row["loss"] / first, 4)
            result["training"].append(row)
            print_row(row)
    if arguments.json:
        print(json.dumps(result))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def print_row(row: dict[str, Any]) -> None:
    run = f"{row['steps']} steps, seed {row['seed']}: loss {row['loss']:.4f} ({row['loss_ratio']:.4f} x first)"
    print(f"{row['codec']:24} {run}  {row['bytes_ratio']} x fewer bytes  {row['cpu_s']} s", file=sys.stderr, flush=True)


def print_speeds(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        rates = f"{row['encode_bytes_per_s'] / 1e9:6.2f} GB/s in {row['decode_bytes_per_s'] / 1e9:6.2f} GB/s out"
        print(f"{row['codec']:10} {rates}  {row['bytes_ratio']} x fewer bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
