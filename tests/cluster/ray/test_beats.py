"""Signs of life of a worker whose process nobody sees."""

from __future__ import annotations

import pytest

from gradbase.cluster.channel import Channel, Gone
from gradbase.cluster.ray import _beats
from gradbase.cluster.ray._beats import Beats


def test_beats_come_between_whole_messages_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_beats, "BEAT_S", 0.001)
    ours, theirs = Channel.pair()
    with Beats(ours):
        for number in range(50):
            ours.send("done", number)
        first = [theirs.receive() for _ in range(60)]
    ours.close()
    rest = []
    with pytest.raises(Gone):
        while True:
            rest.append(theirs.receive())
    assert [each for each in [*first, *rest] if each != ["beat"]] == [["done", number] for number in range(50)]


def test_beats_end_with_whoever_hears_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_beats, "BEAT_S", 0.001)
    ours, theirs = Channel.pair()
    with Beats(ours) as beats:
        assert theirs.receive() == ["beat"]
        theirs.close()
        beats._thread.join(30)
        assert not beats._thread.is_alive()
