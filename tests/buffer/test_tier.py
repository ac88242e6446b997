import pytest

from gradbase.buffer import measure_tier
from gradbase.buffer._tier import _Pace, _Round, _tier_of
from gradbase.common.errors import PageError

MIB = 1 << 20


def test_a_tier_is_measured(tmp_path):
    tier = measure_tier(tmp_path, seconds=0.1)
    # between a slow disk and the speed of memory; 1 byte per µs is 1 MB/s
    assert 5 < tier.write_bytes_per_us < 100_000
    assert 5 < tier.read_bytes_per_us < 100_000
    assert 1 < tier.latency_us < 1_000_000
    assert 0 <= tier.compute_tax < 1
    assert (tier.source, tier.alignment_bytes) == ("measured", 4096)
    assert list(tmp_path.iterdir()) == []


SECONDS_PER_ROUND = 64 * MIB / 1e6 / 1000  # all pages in this time are 1000 bytes per µs


def a_round(*, write=1000.0, read=500.0, both=(900.0, 450.0), alone=10.0, beside=9.0):
    """A round with these rates in bytes per µs, and products per second alone and beside transfers."""
    writing, reading = (SECONDS_PER_ROUND * 1000 / rate for rate in (write, read))
    paces = (_Pace(alone, 1.0), _Pace(beside * writing, writing), _Pace(beside * reading, reading))
    return _Round(*paces, *both)


def test_rates_are_those_of_the_slow_rounds():
    rounds = [a_round(write=w, read=w / 2) for w in (2000, 10, 1000, 3000, 4000)]
    tier = _tier_of(rounds, latency_us=80)
    assert (tier.write_bytes_per_us, tier.read_bytes_per_us) == pytest.approx((1000, 500))
    assert tier.latency_us == 80


def test_the_tax_is_what_all_rounds_lost_together():
    assert _tier_of([a_round(beside=9), a_round(beside=5)], latency_us=80).compute_tax == pytest.approx(0.3)
    assert _tier_of([a_round(beside=12)] * 2, latency_us=80).compute_tax == 0


@pytest.mark.parametrize(("both", "duplex"), [((990, 330), False), ((660, 500), False), ((900, 450), True)])
def test_a_direction_that_loses_a_third_beside_the_other_is_not_duplex(both, duplex):
    assert _tier_of([a_round(both=both)] * 2, latency_us=80).duplex is duplex


def test_a_directory_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(PageError, match="cannot make a page file"):
        measure_tier(tmp_path / "missing")
