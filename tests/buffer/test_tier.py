import pytest

from gradbase.buffer import measure_tier
from gradbase.buffer._tier import _Round, _tier_of
from gradbase.common.errors import PageError


def test_a_tier_is_measured(tmp_path):
    tier = measure_tier(tmp_path, seconds=0.1)
    # between a slow disk and the speed of memory; 1 byte per µs is 1 MB/s
    assert 5 < tier.write_bytes_per_us < 100_000
    assert 5 < tier.read_bytes_per_us < 100_000
    assert 1 < tier.latency_us < 1_000_000
    assert 0 <= tier.compute_tax < 1
    assert (tier.source, tier.alignment_bytes) == ("measured", 4096)
    assert list(tmp_path.iterdir()) == []


def test_every_figure_is_the_median_of_the_rounds():
    rounds = [_Round(1000, 500, 900, 450, 0.1), _Round(10, 5000, 900, 450, 0.9), _Round(1200, 480, 900, 450, 0.0)]
    tier = _tier_of(rounds, latency_us=80)
    assert (tier.write_bytes_per_us, tier.read_bytes_per_us) == (1000, 500)
    assert (tier.compute_tax, tier.latency_us, tier.duplex) == (0.1, 80, True)


def test_a_direction_that_loses_a_third_beside_the_other_is_not_duplex():
    assert not _tier_of([_Round(1000, 500, 990, 330, 0.1)], latency_us=80).duplex
    assert not _tier_of([_Round(1000, 500, 660, 500, 0.1)], latency_us=80).duplex


def test_a_directory_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(PageError, match="cannot make a page file"):
        measure_tier(tmp_path / "missing")
