import random
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradbase.common.errors import StoreError, UsageError
from gradbase.store.codec import (
    Codec,
    CodecSpeed,
    Compressor,
    Direction,
    choose,
    decode,
    encode,
    measure_speeds,
    parse_codec,
    split,
)
from gradbase.store.codec._bodies import largest

LOSSY = ["bf16", "int8", "topk", "topk:0.3", "onebit"]
HEADER_BYTES = 24

numbers = st.floats(-(2.0**100), 2.0**100, width=32)
pages = st.integers(0, 3000).flatmap(lambda n: arrays.arrays(np.float32, n, elements=numbers))


def message(codec, page, residual=None):
    return b"".join(encode(parse_codec(codec), page, residual))


def read(data, numel, dtype=torch.float32, out=None):
    return decode(split(data), numel, dtype, out)


def normal(numel, seed=0):
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("numel", [0, 1, 999])
def test_none_is_the_page_itself(dtype, numel):
    page = normal(numel).to(dtype)
    assert torch.equal(read(message("none", page), numel, dtype), page)


@pytest.mark.parametrize("codec", LOSSY)
@settings(max_examples=60, deadline=None)
@given(values=pages, earlier=st.integers(0, 5))
def test_nothing_is_lost_only_late(codec, values, earlier):
    """What was decoded and what is kept back add up to the gradient and what was kept back before."""
    page = torch.from_numpy(values)
    residual = normal(len(values), earlier) if earlier else torch.zeros(len(values))
    expected = residual + page
    decoded = read(message(codec, page, residual), len(values))
    error = (decoded.double() + residual.double() - expected.double()).abs()
    assert (error <= 1e-6 * expected.abs().double() + 1e-6 * float(expected.abs().max() if len(values) else 0)).all()


@pytest.mark.parametrize(("codec", "bound"), [("bf16", 2**-8), ("int8", 0.5 / 127 + 1e-6)])
@given(values=pages)
@settings(max_examples=60, deadline=None)
def test_rounding_stays_inside_its_bound(codec, bound, values):
    page = torch.from_numpy(values)
    error = (read(message(codec, page), len(values)) - page).abs()
    blocks = zip(error.split(512), page.split(512), strict=True)
    assert all((e <= bound * p.abs().max() + 1e-37).all() for e, p in blocks if len(p))


@given(
    values=arrays.arrays(np.float32, st.integers(1, 2000), elements=st.floats(-100, 100, width=32)),
    share=st.floats(0.001, 1),
)
@settings(max_examples=150, deadline=None)
def test_topk_keeps_exactly_the_largest(values, share):
    count = min(int(np.ceil(len(values) * share)), len(values))
    found = largest(values.copy(), count)
    expected = np.sort(np.abs(values))[::-1][:count]
    expected = expected[expected > 0]
    assert np.array_equal(np.sort(np.abs(values[found]))[::-1], expected)
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("shape", ["column", "spike", "heavy", "zeros", "equal"])
def test_topk_on_magnitudes_that_a_sample_misjudges(shape):
    page = torch.zeros(64 * 1000)
    if shape == "column":
        page[::64] = 1 + normal(1000).abs()
    elif shape == "spike":
        page[777:790] = 5.0
    elif shape == "heavy":
        page = normal(64_000) ** 7
    elif shape == "equal":
        page += 2.0
    kept = read(message("topk:0.01", page), len(page))
    count = min(640, int((page != 0).sum()))
    chosen = kept != 0
    assert int(chosen.sum()) == count and torch.equal(kept[chosen], page[chosen].bfloat16().float())
    assert torch.equal(page[chosen].abs().sort(descending=True).values, page.abs().sort(descending=True).values[:count])


def test_onebit_is_sign_and_mean_magnitude():
    page = torch.tensor([1.0, -3.0, 0.0, -0.0, 4.0])
    decoded = read(message("onebit", page), 5)
    assert torch.allclose(decoded, torch.tensor([1.6, -1.6, 1.6, 1.6, 1.6]))


RATIOS = {"bf16": 1.99, "int8": 3.95, "topk:0.01": 125, "topk:0.026": 49, "onebit": 30.5}


@pytest.mark.parametrize(("codec", "ratio"), RATIOS.items())
def test_messages_are_as_small_as_promised(codec, ratio):
    page = normal(1 << 18)
    assert page.numel() * 4 / len(message(codec, page)) > ratio


@pytest.mark.parametrize("codec", LOSSY)
def test_error_feedback_makes_up_for_what_is_left_out(codec):
    """The sum of what arrives follows the sum of what was sent; the difference does not grow with the steps."""
    compressor = Compressor({3: parse_codec(codec)})
    arrived, given_up = torch.zeros(5000), []
    for step in range(400):
        arrived += read(b"".join(compressor.encode(3, torch.ones(5000))), 5000)
        given_up.append(float((step + 1 - arrived).abs().max()))
    assert max(given_up[200:]) <= 1.1 * max(given_up[:200]) + 1e-3
    assert compressor.raw_nbytes == 400 * 5000 * 4
    assert compressor.sent_nbytes < compressor.raw_nbytes / 1.6


@pytest.mark.parametrize("codec", LOSSY)
def test_a_restored_worker_sends_the_same_bytes(codec):
    first, second = (Compressor({0: parse_codec(codec)}) for _ in range(2))
    first.encode(0, normal(3000, 1))
    second.load_state(first.state())
    first_again, second_again = (b"".join(c.encode(0, normal(3000, 2))) for c in (first, second))
    assert first_again == second_again
    saved = first.state()[0].clone()
    first.encode(0, normal(3000, 3))
    assert torch.equal(second.state()[0], saved)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3.4e38])
def test_what_is_no_number_arrives_and_is_then_forgotten(codec, bad):
    compressor = Compressor({0: parse_codec(codec)})
    page = normal(2000)
    page[1234] = bad
    arrived = read(b"".join(compressor.encode(0, page)), 2000)
    assert torch.equal(arrived.nan_to_num(5.0), page.nan_to_num(5.0))
    after = read(b"".join(compressor.encode(0, normal(2000, 1))), 2000)
    assert after.isfinite().all() and compressor.state()[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("codec", LOSSY)
def test_other_floats_keep_their_dtype(codec, dtype):
    page = normal(3000).to(dtype)
    decoded = read(message(codec, page), 3000, dtype)
    assert decoded.dtype == dtype
    assert torch.equal(decoded, read(message(codec, page.float()), 3000).to(dtype))


def test_integers_are_never_rounded():
    page = torch.arange(5000)
    assert torch.equal(read(b"".join(Compressor({0: Codec("int8")}).encode(0, page)), 5000, torch.int64), page)


@pytest.mark.parametrize("codec", ["none", *LOSSY])
def test_decoding_into_given_memory(codec):
    page, out = normal(3000), torch.full((3000,), 7.0)
    assert read(message(codec, page), 3000, out=out) is out
    assert torch.equal(out, read(message(codec, page), 3000))


@pytest.mark.parametrize("codec", ["none", *LOSSY])
def test_damage_is_refused_or_harmless(codec):
    """Any byte changed, any length cut: a StoreError, or a page of the right size. Nothing else."""
    page, dice = normal(700), random.Random(codec)
    good = message(codec, page)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            bad[dice.randrange(min(len(bad), 60) if dice.random() < 0.7 else len(bad))] = dice.randrange(256)
        if dice.random() < 0.3:
            bad = bad[: dice.randrange(len(bad))]
        try:
            assert read(bytes(bad), 700).shape == (700,)
        except StoreError as error:
            assert "no encoded page" in str(error)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(data):
    with pytest.raises(StoreError, match="no encoded page"):
        read(data, 16)


def test_sizes_are_checked_before_memory_is_taken():
    huge = struct.pack("<BBHIQQ", 2, 1, 1, 512, 1 << 60, 0)
    with pytest.raises(StoreError, match="elements of float32, not 16"):
        read(huge, 16)
    wrong = message("int8", normal(16))
    with pytest.raises(StoreError, match="not 16 of torch.float64"):
        read(wrong, 16, torch.float64)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (struct.pack("<2H2B", 1, 1, 5, 10), "positions of a topk body are inside"),
        (struct.pack("<2H3B", 1, 1, 5, 255, 0), "positions of a topk body are inside"),
        (struct.pack("<2H3B", 1, 1, 5, 0, 0), "a position an element"),
        (struct.pack("<2H2B", 1, 1, 5, 255), "a position an element"),
        (struct.pack("<2H3B", 1, 1, 5, 0, 255), "a position an element"),
        (struct.pack("<2HB", 1, 1, 5), "at least 3 bytes a kept element"),
    ],
)
def test_positions_outside_the_page_are_refused(body, words):
    header = struct.pack("<BBHIQQ", 3, 1, 2, 2, 16, len(body))
    with pytest.raises(StoreError, match=words):
        read(header + body, 16)


@given(st.sets(st.integers(0, 5000), max_size=60))
def test_positions_however_far_apart(places):
    page = torch.zeros(5001)
    page[sorted(places)] = 1.5
    assert torch.equal(read(message("topk", page) if len(places) <= 51 else message("topk:0.02", page), 5001), page)


def test_older_messages_are_read_where_their_bodies_are_the_same():
    page = normal(100)
    for codec in ("none", "int8", "onebit"):
        data = bytearray(message(codec, page))
        data[2] = 1
        assert torch.equal(read(data, 100), read(message(codec, page), 100))
    data = bytearray(message("topk", page))
    data[2] = 1
    with pytest.raises(StoreError, match="topk of format version 1"):
        read(data, 100)


UNKNOWN = ["", "gzip", "int8:", "int8:2", "topk:0", "topk:2", "topk:x", "topk:", "topk:nan", "onebit:1.5"]


@pytest.mark.parametrize("text", [*UNKNOWN, "topk:0.1:-1", "topk:0.1:2:3"])
def test_unknown_codecs_are_refused(text):
    with pytest.raises(UsageError, match="no codec"):
        parse_codec(text)


@pytest.mark.parametrize("text", ["none", "bf16", "int8", "onebit", "onebit:0", "topk:0.05", "topk:0.05:7"])
def test_codecs_print_as_they_are_written(text):
    assert str(parse_codec(text)) == text


def test_a_warm_up_leaves_out_ever_more():
    codec = parse_codec("topk:0.01:100")
    shares = [codec.at(step).share for step in range(120)]
    assert shares[0] == 0.25 and shares == sorted(shares, reverse=True) and set(shares[100:]) == {0.01}
    assert parse_codec("topk:0.5:100").at(3).share == 0.5
    assert [str(parse_codec("onebit:2").at(step)) for step in (1, 2)] == ["none", "onebit:2"]
    assert parse_codec("topk").at(0).share == 0.25 and parse_codec("onebit").at(0) == parse_codec("onebit")
    assert parse_codec("int8").at(0) == Codec("int8")
    compressor = Compressor({0: codec})
    compressor.step = 0
    assert np.count_nonzero(read(b"".join(compressor.encode(0, torch.randn(4000))), 4000)) == 1000


SPEEDS = {
    "none": CodecSpeed(1e12, 1e12, 1.0),
    "bf16": CodecSpeed(8e9, 8e9, 0.5),
    "int8": CodecSpeed(3e9, 5e9, 0.25),
    "topk:0.01": CodecSpeed(1.5e9, 8e9, 0.02),
    "onebit": CodecSpeed(1.5e9, 3e9, 0.032),
}


@pytest.mark.parametrize(
    ("link", "codec"), [(None, "none"), (20e9, "none"), (1.5e9, "bf16"), (0.4e9, "int8"), (10e6, "topk:0.01")]
)
def test_the_choice_follows_the_link(link, codec):
    choice = choose(100_000_000, link, SPEEDS)
    assert str(choice.codec) == codec
    assert str(choice).startswith(f"codec={codec} (")


def test_the_reason_has_the_numbers():
    choice = choose(100_000_000, 10e6, SPEEDS)
    assert "at 9.54 MiB/s" in choice.reason and "none 10.00 s" in choice.reason
    assert choice.times_us["none"] == pytest.approx(1e7)


@pytest.mark.parametrize("direction", [None, Direction((0.9, 0.999), 1e-8, lanes=2)])
def test_speeds_are_measured(direction):
    speeds = measure_speeds((Codec("none"), Codec("topk")), direction)
    assert speeds["topk:0.01"].ratio == pytest.approx(0.0077, rel=0.1)
    assert all(s.encode_bytes_per_s > 1e6 and s.decode_bytes_per_s > 1e6 for s in speeds.values())
