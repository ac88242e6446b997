"""Which codec a job's gradients go through, tensor by tensor, what they leave out, and which moments are the lanes'.

A codec belongs to the job and not to a link: every gradient goes through it, computed here or on another host, so that
the values do not depend on which worker computed what. What it leaves out (error feedback) belongs to the lane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from gradbase.common.errors import UsageError
from gradbase.store.codec import Codec, Compressor, Direction, decode, parse_codec
from gradbase.store.layout import Layout, TensorSpec
from gradbase.store.update import UpdateRule

_NUMEL_MIN = 4096  # smaller tensors go as they are unless they are named: there is little to save, and biases are few
# Beside what leaves out all but a few hundredths they are few no longer: of a small GPT as many bytes as all the rest.
_BESIDE_SPARSE = Codec("int8")


@dataclass(frozen=True)
class Codecs:
    """The codec of a job and those of single tensors, by pattern. As text: "int8,head.*=none"."""

    everywhere: Codec = Codec()
    named: tuple[tuple[str, Codec], ...] = ()

    def __str__(self) -> str:
        return ",".join([str(self.everywhere), *(f"{pattern}={codec}" for pattern, codec in self.named)])

    @property
    def lossy(self) -> bool:
        return self.everywhere.lossy or any(codec.lossy for _, codec in self.named)

    def of_pages(
        self, layout: Layout, rule: UpdateRule, lanes: int = 1, *, together: bool = True
    ) -> dict[int, Codec]:
        """The codec of every page whose gradient does not go as it is; of what the rule has directed, with how.

        together: whether an update is the mean of all lanes, as under bsp. Raises UsageError for a pattern of nothing.
        """
        chosen = self._of_tensors(layout, rule)
        for index, spec in enumerate(layout.tensors):
            if spec.name in rule.directed:
                chosen[index] = replace(chosen[index], direction=_direction(rule, spec.name, lanes, together))
        return {page.number: chosen[page.tensor] for page in layout.pages if chosen[page.tensor].lossy}

    def directing(self, layout: Layout, rule: UpdateRule) -> UpdateRule:
        """The rule with all tensors directed whose codec wants that, and whose optimizer is an Adam that allows it."""
        chosen = zip(layout.tensors, self._of_tensors(layout, rule), strict=True)
        return rule.with_directed(spec.name for spec, codec in chosen if codec.directs and rule.can_direct(spec.name))

    def _of_tensors(self, layout: Layout, rule: UpdateRule) -> list[Codec]:
        for pattern, _ in self.named:
            if not any(fnmatchcase(spec.name, pattern) for spec in layout.tensors):
                named = ", ".join(spec.name for spec in layout.tensors[:3])
                raise UsageError(f"no tensor of the model is called {pattern!r}", f"the first ones are called {named}")
        return [self._of_tensor(spec) if rule.settings(spec.name) is not None else Codec() for spec in layout.tensors]

    def _of_tensor(self, spec: TensorSpec) -> Codec:
        for pattern, codec in self.named:
            if fnmatchcase(spec.name, pattern):
                return codec
        if spec.numel >= _NUMEL_MIN and len(spec.shape) > 1:
            return self.everywhere
        return _BESIDE_SPARSE if self.everywhere.leaves_most_out else Codec()


def _direction(rule: UpdateRule, tensor: str, lanes: int, together: bool) -> Direction:
    settings = rule.settings(tensor)
    assert settings is not None
    return Direction(settings["betas"], settings["eps"], lanes, together)


def any_direction(layout: Layout, rule: UpdateRule, lanes: int = 2) -> Direction | None:
    """That of the first tensor whose optimizer is an Adam that allows it, to be timed: it takes as long for all."""
    names = (spec.name for spec in layout.tensors if rule.can_direct(spec.name))
    return next((_direction(rule, name, lanes, together=True) for name in names), None)


def parse_codecs(text: str) -> Codecs:
    """Read "int8", "topk:0.01" or "int8,head.*=none": one for all tensors, then others by name, the first that fits.

    Raises UsageError on anything else.
    """
    first, *others = text.split(",")
    named = []
    for other in others:
        pattern, equals, codec = other.partition("=")
        if not (pattern and equals):
            raise UsageError(f"{other!r} names no tensors with a codec", "write it as in int8,head.*=none")
        named.append((pattern, parse_codec(codec)))
    return Codecs(parse_codec(first), tuple(named))


class Feedback:
    """A process's compressors, one a lane. `load` gives what earlier gradients of a lane have left out, by page."""

    def __init__(self, codecs: Mapping[int, Codec], load: Callable[[int], Mapping[int, torch.Tensor]]) -> None:
        self._codecs = codecs
        self._load = load
        self._lanes: dict[int, Compressor] = {}

    def of_lane(self, lane: int) -> Compressor:
        if lane not in self._lanes:
            self._lanes[lane] = Compressor(self._codecs)
            self._lanes[lane].load_state(self._load(lane) if self._codecs else {})
        return self._lanes[lane]

    def begin(self, lane: int, step: int) -> None:
        """A gradient of the lane is about to come, of this step of the job."""
        self.of_lane(lane).step = step

    def squeeze(self, lane: int, number: int, page: torch.Tensor) -> None:
        """Replace a page's gradient, flat, by what would arrive of it on the other side of a link."""
        if number in self._codecs:
            message = self.of_lane(lane).encode(number, page)
            decode(message, page.numel(), page.dtype, out=page)
