"""Workers behind sockets train what one process trains, and nobody else gets anything done."""

import multiprocessing
import threading
import time

import pytest
import torch

from gradbase.common.errors import StoreError, UsageError
from gradbase.store.codec import Compressor, parse_codec
from gradbase.store.layout import flatten, lay_out, specs_of_model, tensor_view
from gradbase.store.machine import Job
from gradbase.store.machine import messages as m
from gradbase.store.server import RemoteWorker, StoreServer, TensorPages
from gradbase.store.server._pages import pack_rows
from gradbase.store.update import Updater, allocate, rule_of, settings_of
from gradbase.store.wire import Address, Block, connect, parse_address

TOKEN = "a token of enough characters"
LANES, STEPS = 2, 5


def recipe():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.02)


def batch_of(number):
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(number))
    return inputs, inputs.sum(dim=1, keepdim=True).sin()


def loss_of(model, number):
    inputs, targets = batch_of(number)
    return torch.nn.functional.mse_loss(model(inputs), targets)


def layout_of(model, rule, shards=2):
    return lay_out(specs_of_model(model, costs=rule.costs()), shards, page_bytes=256)


def job_of(consistency="bsp", staleness=0, steps=STEPS, **more):
    return Job(lanes=LANES, shards=2, steps=steps, consistency=consistency, staleness_steps=staleness, **more)


@torch.no_grad()
def total_loss(model):
    return float(sum(loss_of(model, number) for number in range(60)))


def server_of(job, address=None, **more):
    model, optimizer = recipe()
    rule = rule_of(optimizer, model)
    return StoreServer(job, layout_of(model, rule), rule, TOKEN, address, values=model.state_dict(), **more)


def work(job, number, address, codec=None, delay_s=0.0, die_at=None, leave_at=None):
    """A worker: views into its own memory, plain autograd, gradients by page."""
    torch.set_num_threads(1)
    model, optimizer = recipe()
    layout = layout_of(model, rule_of(optimizer, model))
    memory = torch.zeros(layout.slab_nbytes, dtype=torch.uint8)
    for name, parameter in model.named_parameters():
        parameter.data = tensor_view(layout, memory, name)
    compressor = Compressor({page.number: codec for page in layout.pages}) if codec else None

    def compute(step, lane, batch):
        if die_at == step:
            raise KeyboardInterrupt
        if leave_at == step:
            worker.leave()
        time.sleep(delay_s)
        model.zero_grad()
        loss_of(model, batch).backward()
        gradients = {name: flatten(layout.spec(name), p.grad) for name, p in model.named_parameters()}
        return {
            page.number: gradients[layout.tensors[page.tensor].name][page.start : page.start + page.numel]
            for page in layout.pages
        }

    worker = RemoteWorker(job, layout, number, parse_address(address), TOKEN, memory, compressor=compressor)
    worker.run(compute)


def alone():
    """One process that accumulates the same micro-batches in the same order."""
    model, optimizer = recipe()
    for step in range(STEPS):
        sums = None
        for lane in range(LANES):
            model.zero_grad()
            loss_of(model, step * LANES + lane).backward()
            found = [parameter.grad.clone() for parameter in model.parameters()]
            sums = found if sums is None else [total.add_(each) for total, each in zip(sums, found, strict=True)]
        for parameter, total in zip(model.parameters(), sums, strict=True):
            parameter.grad = total.mul_(1 / LANES)
        optimizer.step()
    return model.state_dict()


def start(job, server, *workers, **more):
    threads = [threading.Thread(target=work, args=(job, n, str(server.address)), kwargs=more) for n in workers]
    for thread in threads:
        thread.start()
    return threads


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_two_workers_give_the_bits_of_one_process(kind, tmp_path):
    job = job_of()
    address = Address() if kind == "tcp" else Address("", 0, str(tmp_path / "s"))
    with server_of(job, address) as server:
        workers = start(job, server, 0, 1)
        assert server.wait(60)
        assert_equal(server.state_dict(), alone())
        for worker in workers:
            worker.join(10)


def test_a_worker_in_another_process():
    """It is alone, and so computes both lanes."""
    job = job_of()
    with server_of(job) as server:
        child = multiprocessing.get_context("spawn").Process(target=work, args=(job, 0, str(server.address)))
        child.start()
        assert server.wait(120)
        child.join(60)
        assert child.exitcode == 0
        assert_equal(server.state_dict(), alone())


def test_a_worker_that_dies_is_replaced_and_the_bits_stay():
    job = job_of()
    with server_of(job) as server:
        (survivor,) = start(job, server, 0)
        with pytest.raises(KeyboardInterrupt):
            work(job, 1, str(server.address), die_at=2)
        start(job, server, 2)
        assert server.wait(60)
        assert_equal(server.state_dict(), alone())
        survivor.join(10)


@pytest.mark.parametrize(("consistency", "codec"), [("ssp", None), ("asp", None), ("bsp", "int8")])
def test_stale_and_compressed_gradients_learn_too(consistency, codec):
    job = job_of(consistency, 2, steps=30)
    model, _ = recipe()
    before = total_loss(model)
    with server_of(job) as server:
        workers = start(job, server, 0, 1, codec=parse_codec(codec) if codec else None)
        assert server.wait(60)
        model.load_state_dict(server.state_dict())
        for worker in workers:
            worker.join(10)
    assert total_loss(model) < 0.9 * before


def test_learning_rates_can_be_changed():
    job = job_of()
    model, optimizer = recipe()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.param_groups[0]["weight_decay"] = 0.0
    with server_of(job) as server:
        server.set_settings(settings_of(optimizer))
        start(job, server, 0, 1)
        assert server.wait(60)
        assert_equal(server.state_dict(), model.state_dict())


HOSTILE = {
    "as another worker": (m.Beat(0, 1, 0, 0, 0), ("coordinator", 0), ("worker", 0)),
    "as a shard": (m.Ready(0, 1, 1), ("coordinator", 0), ("shard", 0)),
    "a fence": (m.Fence(99, 1), ("shard", 0), ("worker", 0)),
    "a slot too far": (m.Join(999, 1), ("coordinator", 0), ("worker", 999)),
    "a shard too far": (m.Pull(0, 0, 0, 0), ("shard", 9), ("worker", 0)),
    "a negative lane": (m.Push(1, 0, 1, 0, -1, 0, 0, 1, ()), ("shard", 0), ("worker", 0)),
    "a foreign page": (
        m.Push(1, 0, 1, 0, 0, 0, 0, 1, (Block(10**6, bytes(24), b""),)), ("shard", 0), ("worker", 0)
    ),
    "a damaged page": (m.Push(1, 0, 1, 0, 0, 0, 0, 1, (Block(0, bytes(24), b"x"),)), ("shard", 0), ("worker", 0)),
    "rows of no table": (m.Pull(1, 0, 1, 0, (Block(-1, b"", bytes(8)),)), ("shard", 0), ("worker", 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_worker_says_ends_its_connection_and_nothing_else(name):
    job = job_of()
    with server_of(job) as server:
        rogue = connect(server.address, TOKEN)
        message, to, sender = HOSTILE[name]
        rogue.send(message, to, sender)
        assert rogue.receive() is None
        start(job, server, 0, 1)
        assert server.wait(60)
        assert_equal(server.state_dict(), alone())


def test_a_worker_without_the_token_does_not_start():
    job = job_of()
    with server_of(job) as server:
        model, optimizer = recipe()
        layout = layout_of(model, rule_of(optimizer, model))
        with pytest.raises(StoreError, match="refuses this token"):
            RemoteWorker(job, layout, 0, server.address, TOKEN + "x", bytearray(layout.slab_nbytes))


def test_a_worker_says_so_when_the_server_goes():
    job = job_of()
    server, failures = server_of(job), []

    def run():
        try:
            work(job, 0, str(server.address), delay_s=0.3)
        except StoreError as error:
            failures.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    server.close()
    thread.join(10)
    assert len(failures) == 1 and "before the job was finished" in failures[0]
    with pytest.raises(StoreError, match="closed"):
        server.state_dict()


def test_promises_it_cannot_keep_are_refused():
    with pytest.raises(UsageError, match="cannot promise durability 'wal'"):
        server_of(job_of(durability="wal"))


def test_rows_go_over_the_wire_as_blocks():
    """A table's rows: pushed by two lanes, summed, applied, and pulled again by id."""
    torch.manual_seed(0)
    model = torch.nn.Embedding(50, 4)
    rule = rule_of(torch.optim.SGD(model.parameters(), lr=1.0), model)
    layout = lay_out(specs_of_model(model, rows=["weight"]), 1)
    pages = TensorPages(Updater(layout, rule, allocate(layout, rule, 0), shard=0), 2, copies=False)
    ids = torch.tensor([3, 49, 3])
    lanes = [(pages.unpack((pack_rows(0, ids, torch.ones(3, 4)),)),) for _ in range(2)]
    pages.apply(pages.reduce(lanes))
    wanted = Block(-1, b"", torch.tensor([49, 3, 0]).numpy().tobytes())
    (answer,) = pages.read((wanted,))
    rows = torch.frombuffer(bytearray(answer.body), dtype=torch.float32).view(3, 4)
    assert rows[:, 0].tolist() == [-1.0, -2.0, 0.0]
    pages.restore(None)
    assert torch.frombuffer(bytearray(pages.read((wanted,))[0].body), dtype=torch.float32).eq(0).all()
    with pytest.raises(StoreError, match="row 50 of weight"):
        pages.unpack((pack_rows(0, torch.tensor([50]), torch.ones(1, 4)),))


ROWS = 200


def words_recipe():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"words": torch.nn.Embedding(ROWS, 8, sparse=True), "head": torch.nn.Linear(8, 1)})
    return model, torch.optim.Adagrad(model.parameters(), lr=0.1)


def words_of(number):
    """Ids of a batch, some of them more than once."""
    return torch.randint(100, 120, (4, 6), generator=torch.Generator().manual_seed(number))


def words_loss(model, number):
    return (model["head"](model["words"](words_of(number)).mean(1)) - 1).square().mean()


def words_layout(model, rule):
    return lay_out(specs_of_model(model, rows=["words.weight"], costs=rule.costs()), 2, page_bytes=256)


def words_worker(job, worker, address, memory, rows):
    """A worker and what it computes: the table's gradient as autograd gives it, all others by page."""
    model, optimizer = words_recipe()
    layout = words_layout(model, rule_of(optimizer, model))
    for name, parameter in model.named_parameters():
        parameter.data = tensor_view(layout, memory, name)

    def compute(step, lane, batch):
        model.zero_grad()
        words_loss(model, batch).backward()
        found = {"words.weight": model["words"].weight.grad}
        for name in ("head.weight", "head.bias"):
            for page in layout.of_tensor(name):
                flat = model.get_parameter(name).grad.reshape(-1)
                found[page.number] = flat[page.start : page.start + page.numel]
        return found

    return RemoteWorker(job, layout, worker, address, TOKEN, memory, rows=rows), compute


def words_alone():
    model, optimizer = words_recipe()
    for step in range(STEPS):
        optimizer.zero_grad()
        for lane in range(LANES):
            (words_loss(model, step * LANES + lane) / LANES).backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("consistency", ["bsp", "asp"])
def test_workers_have_the_rows_that_they_need_and_no_others(consistency):
    model, optimizer = words_recipe()
    rule, job = rule_of(optimizer, model), job_of(consistency)
    memories = [torch.zeros(words_layout(model, rule).slab_nbytes, dtype=torch.uint8) for _ in range(2)]
    with StoreServer(job, words_layout(model, rule), rule, TOKEN, values=model.state_dict()) as server:
        pairs = [
            words_worker(job, n, server.address, memory, lambda batch: {"words.weight": words_of(batch)})
            for n, memory in enumerate(memories)
        ]
        threads = [threading.Thread(target=worker.run, args=(compute,)) for worker, compute in pairs]
        for thread in threads:
            thread.start()
        assert server.wait(60)
        found, expected = server.state_dict(), words_alone()
        for thread in threads:
            thread.join(10)
    if consistency == "bsp":
        assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    untouched = [*range(100), *range(120, ROWS)]
    assert torch.equal(found["words.weight"][untouched], model.state_dict()["words.weight"][untouched])
    assert not torch.allclose(found["words.weight"][100:120], model.state_dict()["words.weight"][100:120])
    for memory in memories:
        table = tensor_view(words_layout(model, rule), memory, "words.weight")
        assert table[100:120].any() and not table[untouched].any()


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (lambda batch: words_of(batch)[:1], "was used, and not asked for"),
        (lambda batch: torch.tensor([ROWS]), "row 200 of words.weight does not exist"),
    ],
)
def test_rows_that_were_not_named_or_are_not_there_end_the_worker(ids, words):
    model, optimizer = words_recipe()
    rule, job = rule_of(optimizer, model), job_of()
    memory = torch.zeros(words_layout(model, rule).slab_nbytes, dtype=torch.uint8)
    with StoreServer(job, words_layout(model, rule), rule, TOKEN, values=model.state_dict()) as server:
        worker, compute = words_worker(job, 0, server.address, memory, lambda batch: {"words.weight": ids(batch)})
        with pytest.raises(StoreError, match=words):
            worker.run(compute)


def test_a_worker_that_leaves_and_one_that_comes_change_nothing():
    """The first one goes in its third step, and the job ends with another, who came later."""
    job = job_of()
    with server_of(job) as server:
        (first,) = start(job, server, 0, leave_at=2)
        first.join(30)
        assert not first.is_alive() and not server.wait(0)
        (other,) = start(job, server, 3)
        assert server.wait(60)
        assert_equal(server.state_dict(), alone())
        other.join(10)
