"""Adam's directions, found by the lanes: the server's Adam where nothing is left out, and late where it is."""

import math
from dataclasses import replace

import pytest
import torch

from gradbase.common.errors import UsageError
from gradbase.store.codec import Compressor, Direction, carried_numel, decode, parse_codec
from gradbase.store.layout import lay_out, specs_of_model, tensor_view
from gradbase.store.update import Updater, allocate, rule_of

BETAS, EPS = (0.9, 0.99), 1e-8
WHOLE = "onebit:10000"  # all of it, as long as it warms up
NUMEL = 640


def lane(codec, lanes=1, *, together=True, direction=True):
    found = Direction(BETAS, EPS, lanes, together) if direction else None
    return Compressor({0: replace(parse_codec(codec), direction=found)})


def pushed(compressor, gradient, step=1000):
    compressor.step = step
    return decode(compressor.encode(0, gradient), len(gradient), gradient.dtype).clone()


def noise(seed, numel=NUMEL):
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def left_out(compressor, numel=NUMEL):
    return compressor.state()[0][:numel]


def adam_steps(gradients, lr=1e-2):
    """What torch's Adam adds to a parameter at each step, over -lr."""
    parameter = torch.nn.Parameter(torch.zeros(len(gradients[0]), dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=lr, betas=BETAS, eps=EPS)
    steps = []
    for gradient in gradients:
        before = parameter.detach().clone()
        parameter.grad = gradient.double()
        optimizer.step()
        steps.append((before - parameter.detach()) / lr)
    return steps


def test_with_nothing_left_out_one_lane_goes_where_adam_goes():
    compressor = lane(WHOLE)
    gradients = [noise(step) + 1 for step in range(30)]
    for step, expected in enumerate(adam_steps(gradients)):
        assert torch.allclose(pushed(compressor, gradients[step], step).double(), expected, atol=1e-4)


@pytest.mark.parametrize("mean", [0.0, 1.0, 30.0])
def test_lanes_go_as_far_as_adam_goes_with_their_mean(mean):
    """Be it that they agree or that they are all noise, of which the mean of four lanes has half as much."""
    lanes = [lane(WHOLE, 4) for _ in range(4)]
    gradients = [[noise(100 * step + k, 64 * NUMEL) + mean for k in range(4)] for step in range(150)]
    for each in gradients:
        mine = sum(pushed(one, gradient) for one, gradient in zip(lanes, each, strict=True)) / 4
    expected = adam_steps([sum(each) / 4 for each in gradients])[-1]
    assert float(mine.double().norm() / expected.norm()) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("codec", ["topk:0.05:0", "onebit:0"])
def test_of_directions_nothing_is_lost_only_late(codec):
    whole, some = lane(WHOLE), lane(codec)
    gradients = [noise(step) + 0.3 for step in range(40)]
    expected = sum(pushed(whole, gradient) for gradient in gradients)
    arrived = sum(pushed(some, gradient) for gradient in gradients)
    assert not torch.allclose(arrived, expected, atol=1e-3)
    assert torch.allclose(arrived + left_out(some), expected, atol=1e-3)


def test_directions_that_were_left_out_keep_the_rate_of_their_time():
    whole, some = lane(WHOLE), lane("topk:0.05:0")
    expected = arrived = 0
    for step, rate in enumerate([1.0, 0.5, 0.5, 2.0, 0.1]):
        some.rate = rate
        expected = expected + rate * pushed(whole, noise(step) + 1)
        arrived = arrived + rate * pushed(some, noise(step) + 1)
    assert torch.allclose(arrived + rate * left_out(some), expected, atol=1e-3)


def test_a_rate_of_zero_loses_nothing_that_was_left_out():
    compressor = lane("topk:0.05:0")
    for step, rate in enumerate([1.0, 0.0, 1.0]):
        compressor.rate = rate
        pushed(compressor, noise(step))
        assert torch.isfinite(compressor.state()[0]).all()


def test_a_lane_that_goes_on_from_its_state_sends_the_same_bytes():
    one = lane("topk:0.05:0", 2)
    for step in range(5):
        pushed(one, noise(step))
    other = lane("topk:0.05:0", 2)
    other.load_state(one.state())
    assert len(one.state()[0]) == carried_numel(NUMEL, one.codecs[0].direction)
    for step in range(5, 9):
        assert [bytes(part) for part in one.encode(0, noise(step))] == [
            bytes(part) for part in other.encode(0, noise(step))
        ]


def test_a_page_that_is_no_number_goes_as_it_is_and_everything_begins_again():
    compressor = lane("topk:0.05:0")
    first = pushed(compressor, noise(0))
    bad = noise(1)
    bad[3] = math.inf
    assert torch.equal(pushed(compressor, bad), bad)
    assert torch.equal(pushed(compressor, noise(0)), first)


def test_an_update_of_one_lane_alone_is_a_whole_step():
    """Under ssp and asp each push is applied for itself, divided by the lanes."""
    alone, stale = lane(WHOLE), lane(WHOLE, 4, together=False)
    for step in range(5):
        assert torch.allclose(pushed(stale, noise(step)) / 4, pushed(alone, noise(step)))


def test_pages_of_half_precision_have_moments_in_full():
    compressor = lane("onebit:2")
    for step in range(4):
        page = noise(step).bfloat16()
        arrived = pushed(compressor, page, step)
        assert arrived.dtype == torch.bfloat16 and 0.1 < float(arrived.float().abs().mean()) <= 1.5


@pytest.mark.parametrize("text", ["topk:0.01", "topk:0.05:60", "topk:0.01:200:gradients", "onebit:0:gradients"])
def test_what_a_codec_is_of_stands_in_its_text(text):
    codec = parse_codec(text)
    assert str(codec) == text and codec.directs != text.endswith("gradients")


@pytest.mark.parametrize("text", ["topk:0.01:200:directions", "int8:gradients", "onebit:gradients"])
def test_other_words_are_refused(text):
    with pytest.raises(UsageError, match="there is no codec"):
        parse_codec(text)


def distance(codec, steps=200, lanes=2):
    """How far AdamW through a codec, learning a linear map from noisy gradients, ends from it."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(32, 64, generator=generator)
    model = torch.nn.Linear(64, 32, bias=False)
    rule, layout = rule_of(torch.optim.AdamW(model.parameters(), lr=1e-2), model), lay_out(specs_of_model(model), 1)
    chosen = parse_codec(codec)
    if chosen.directs:
        rule = rule.with_directed(["weight"])
        chosen = replace(chosen, direction=Direction((0.9, 0.999), EPS, lanes))
    updater = Updater(layout, rule, allocate(layout, rule))
    value = tensor_view(layout, updater.memory["values"], "weight")
    compressors = [Compressor({0: chosen}) for _ in range(lanes)]
    for step in range(steps):
        arrived = []
        for compressor in compressors:
            rows = torch.randn(16, 64, generator=generator)
            gradient = (rows @ (value - truth).T).T @ rows / len(rows)
            arrived.append(pushed(compressor, gradient.flatten(), step))
        updater.apply(0, arrived)
    return float((value - truth).square().mean())


def test_one_in_a_hundred_directions_learns_as_fast_as_all_and_of_gradients_does_not():
    """Without a warm-up. Sums of gradients, which Adam divides by their own squares, leave four times the distance."""
    whole = distance("none")
    assert distance("topk:0.01:0") < 1.3 * whole
    assert distance("onebit:0") < 1.3 * whole
    assert distance("topk:0.01:0:gradients") > 3 * whole
