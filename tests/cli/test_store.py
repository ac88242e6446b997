"""`gradbase store` on small stores that were really trained, checkpointed and logged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gradbase.cli import main
from gradbase.store.log import LogReader
from tests.store.testing_store import Net, SmallStore


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def contents(root: Path) -> dict[str, str]:
    """Digest of every file: what only looks must change nothing."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def equal(path: Path, state: dict[str, torch.Tensor]) -> bool:
    found = safetensors.torch.load_file(path)
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 4]))


def test_inspect_tells_what_is_there(root, capsys):
    store = SmallStore(root).open().train(3).checkpoint().train(2)
    store.close()
    before = contents(root)
    assert main(["store", "inspect", str(root), "--json"]) == 0
    first, *rest = told(capsys)
    assert first["event"] == "store" and first["durability"] == "wal" and first["lanes"] == 2
    checkpoint, *logs = rest
    nbytes = sum(each.nbytes for each in store.checkpointers)
    assert checkpoint == {
        "event": "checkpoint", "checkpoint": 3, "step": 3, "lsns": [3, 3], "nbytes": nbytes, "new_nbytes": nbytes,
        "complete": True, "missing": [],
    }  # fmt: skip
    assert [(log["log"], log["first_lsn"], log["last_lsn"]) for log in logs] == [
        ("0", 1, 5),
        ("1", 1, 5),
        ("coordinator", 1, 1),
    ]
    assert {log["scheme"] for log in logs[:2]} == {"command"} and all(log["closed"] for log in logs)
    assert main(["store", "inspect", str(root)]) == 0
    text = capsys.readouterr().out
    assert "consistency bsp" in text and "coordinator" in text and "command" in text
    assert contents(root) == before


def test_a_torn_tail_is_told(root, capsys):
    store = SmallStore(root).open().train(3)
    flip(root / "log/1" / f"{1:020d}.log", 3 * 4096 + 50)
    for log in store.logs:
        log._unlock()  # as if the process had ended
    assert main(["store", "inspect", str(root), "--json"]) == 0
    torn = {log["log"]: (log["torn_lsn"], log["torn_bytes"]) for log in told(capsys) if log["event"] == "log"}
    assert torn == {"0": (None, None), "1": (3, 4096), "coordinator": (None, None)}
    assert main(["store", "inspect", str(root)]) == 0
    assert "log 1: torn at LSN 3" in capsys.readouterr().out
    assert main(["store", "verify", str(root)]) == 0


def test_verify_reads_everything(root, capsys):
    SmallStore(root, physical=True).open().train(2).checkpoint().train(1).checkpoint().close()
    assert main(["store", "verify", str(root), "--json"]) == 0
    rows = told(capsys)
    assert [row["name"] for row in rows] == ["log 0", "log 1", "log coordinator", "checkpoint 2", "checkpoint 3"]
    assert [row["records"] for row in rows[:3]] == [3, 3, 2] and all(row["nbytes"] > 0 for row in rows)
    assert main(["store", "verify", str(root)]) == 0
    assert "log 0: 3 checksums over" in capsys.readouterr().out


def test_verify_names_file_and_lsn_of_damage(root, capsys):
    SmallStore(root).open().train(4).checkpoint().close()
    path = f"log/1/{1:020d}.log"
    flip(root / path, 2 * 4096 + 40)
    before = contents(root)
    assert main(["store", "verify", str(root), "--json"]) == 2
    seen = capsys.readouterr()
    (damaged,) = [row for row in map(json.loads, seen.out.splitlines()) if row["event"] == "damaged"]
    assert (damaged["name"], damaged["path"], damaged["offset"], damaged["lsn"]) == ("log 1", path, 8192, 2)
    assert f"[damaged] the log is damaged at LSN 2: {path}" in seen.err and "Traceback" not in seen.err
    assert contents(root) == before


def test_a_log_that_is_gone_is_told(root, capsys):
    """It would look like one that was never written to."""
    SmallStore(root).open().train(3).close()
    (root / "log" / "notes.txt").write_text("mine")
    assert main(["store", "verify", str(root)]) == 0
    for name in ("1", "coordinator"):
        kept = (root / "log" / name).rename(root / "elsewhere")
        assert main(["store", "verify", str(root), "--json"]) == 2
        assert f"the log log/{name} is missing" in capsys.readouterr().err
        assert main(["store", "recover", str(root), "--out", str(root.parent / "out.safetensors")]) == 2
        assert not [*root.parent.glob("*.safetensors")]
        kept.rename(root / "log" / name)
    assert main(["store", "verify", str(root)]) == 0


def test_verify_tells_of_a_log_that_ends_before_its_checkpoint(root, capsys):
    """Each of its records is right; that there were more, only the checkpoint knows."""
    SmallStore(root).open().train(3).checkpoint().close()
    (segment,) = (root / "log" / "0").glob("*.log")
    with open(segment, "r+b") as file:
        file.truncate(3 * 4096)
    assert main(["store", "verify", str(root), "--json"]) == 2
    (damaged,) = [each for each in told(capsys) if each["event"] == "damaged"]
    assert damaged["name"] == "log 0" and damaged["lsn"] == 3 and "up to LSN 3" in str(damaged["problem"])


def test_verify_tells_every_damage(root, capsys):
    SmallStore(root).open().train(4).checkpoint().close()
    flip(root / f"log/0/{1:020d}.log", 4096 + 40)
    flip(root / f"checkpoints/{4:020d}/optimizer.safetensors", 5000)
    assert main(["store", "verify", str(root)]) == 2
    seen = capsys.readouterr().err
    assert "damaged at LSN 1" in seen and "optimizer.safetensors is damaged" in seen


def test_a_checkpoint_is_plain_safetensors(root):
    store = SmallStore(root).open().train(2).checkpoint()
    store.close()
    found = safetensors.torch.load_file(root / f"checkpoints/{2:020d}/parameters.safetensors")
    for name, tensor in store.state_dict().items():
        if name not in ("convolution.weight", "head.weight"):  # stored in the order of memory; an alias
            assert torch.equal(found[name], tensor)


def test_recover_gives_a_state_dict_that_the_plain_model_takes(root, tmp_path, capsys):
    store = SmallStore(root).open().train(3).checkpoint(retire=True)
    expected = {name: tensor.clone() for name, tensor in store.state_dict().items()}
    store.train(2).close()
    out = tmp_path / "model.safetensors"
    before = contents(root)
    assert main(["store", "recover", str(root), "--out", str(out), "--json"]) == 0
    (row,) = told(capsys)
    assert (row["checkpoint"], row["replayed_records"]) == (3, 0)
    assert (row["recompute_first_step"], row["recompute_last_step"]) == (3, 4)
    assert equal(out, expected)
    Net().load_state_dict(safetensors.torch.load_file(out))
    assert main(["store", "recover", str(root), "--out", str(out)]) == 0
    assert "steps 3 to 4 are logged as commands: gradbase train --resume" in capsys.readouterr().out
    assert contents(root) == before and [p.name for p in tmp_path.iterdir() if p.is_file()] == ["model.safetensors"]


@pytest.mark.parametrize("consistency", ["bsp", "asp"])
@pytest.mark.parametrize("codec", ["none", "int8"])
def test_recover_replays_logged_updates_bit_for_bit(consistency, codec, root, tmp_path, capsys):
    store = SmallStore(root, consistency=consistency, physical=True, codec=codec).open().train(2).checkpoint().train(3)
    store.close()
    out = tmp_path / "model.safetensors"
    assert main(["store", "recover", str(root), "--out", str(out), "--json"]) == 0
    (row,) = told(capsys)
    assert row["replayed_records"] == 6 and row["recompute_first_step"] is None
    assert equal(out, store.state_dict())


def test_updates_logged_through_a_codec_are_shown_verified_and_take_less_room(tmp_path, capsys):
    sizes = {}
    for codec in ("none", "topk:0.01"):
        store = SmallStore(tmp_path / codec, physical=True, codec=codec).open().train(40)
        store.close()
        assert main(["store", "verify", str(tmp_path / codec)]) == 0
        capsys.readouterr()
        assert main(["store", "inspect", str(tmp_path / codec), "--json"]) == 0
        logs = [row for row in told(capsys) if row.get("log", "").isdecimal()]
        assert {row["scheme"] for row in logs} == {"physical" if codec == "none" else "physical encoded"}
        sizes[codec] = sum(record.nbytes for k in "01" for record in LogReader(store.files, f"log/{k}"))
    assert sizes["topk:0.01"] < sizes["none"] / 3


def test_under_bsp_no_shard_is_replayed_further_than_the_others(root, tmp_path, capsys):
    store = SmallStore(root, physical=True).open().train(2).checkpoint().train(1)
    expected = {name: tensor.clone() for name, tensor in store.state_dict().items()}
    store.logs[1].close()
    store.logs = store.logs[:1]
    store.train(1).close()  # on shard 0 alone
    out = tmp_path / "model.safetensors"
    assert main(["store", "recover", str(root), "--out", str(out)]) == 0
    assert "2 logged updates" in capsys.readouterr().out and equal(out, expected)


def test_recover_passes_over_a_damaged_checkpoint_and_says_so(root, tmp_path, capsys):
    store = SmallStore(root, physical=True).open().train(1).checkpoint().train(1).checkpoint()
    store.close()
    path = f"checkpoints/{2:020d}/parameters.safetensors"
    flip(root / path, 4096)
    out = tmp_path / "model.safetensors"
    assert main(["store", "recover", str(root), "--out", str(out), "--json"]) == 0
    seen = capsys.readouterr()
    row = json.loads(seen.out)
    assert row["checkpoint"] == 1 and row["passed_over"] == [path] and row["replayed_records"] == 2
    assert "a newer checkpoint was passed over" in seen.err
    assert equal(out, store.state_dict())


def test_recover_refuses_a_damaged_log(root, tmp_path, capsys):
    SmallStore(root, physical=True).open().train(1).checkpoint().train(3).close()
    log = root / f"log/0/{1:020d}.log"
    flip(log, log.stat().st_size // 2)
    out = tmp_path / "model.safetensors"
    assert main(["store", "recover", str(root), "--out", str(out)]) == 2
    assert "damaged at LSN" in capsys.readouterr().err and not list(tmp_path.glob("*model*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "absent"], "there is no directory absent"),
        (["inspect", "."], "there is no store here: MANIFEST.json is missing"),
        (["recover", "."], "recover takes --out FILE"),
        (["verify", ".", "--out", "x.safetensors"], "recover takes --out FILE"),
        (["inspct", "."], "did you mean 'inspect'?"),
    ],
)
def test_usage(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["store", *arguments, "--json"]) == 2
    seen = capsys.readouterr()
    assert message in seen.err and seen.out == "" and not list(tmp_path.iterdir())


def test_recover_without_a_checkpoint_writes_nothing(root, tmp_path, capsys):
    SmallStore(root).open().train(1).close()
    assert main(["store", "recover", str(root), "--out", str(tmp_path / "m.safetensors")]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err and not list(tmp_path.glob("*m.safe*"))
    assert main(["store", "recover", str(root), "--out", str(tmp_path / "m.bin")]) == 2
    assert "does not end in .safetensors" in capsys.readouterr().err
