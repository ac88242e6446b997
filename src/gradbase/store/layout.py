"""Where the parameters lie: named tensors, cut into pages, placed on shards.

A *page* is a run of elements of one tensor, about 1 MiB, and the unit of everything a store does: it is reduced,
updated, logged, checkpointed and sent alone. Every page has two addresses:

- `offset` in the *slab*, one buffer for all tensors, in which the pages of a tensor follow each other without a gap, so
  that the tensor is one view (of a worker on the same host);
- `place` in the *home* of its shard, one buffer for the pages of that shard alone (of a server on another host).

Pages are numbered in the order in which the next step needs them: a smaller number is wanted earlier. The layout is a
function of its arguments, so that processes which agree on those agree on every address; `digest` says whether they do.
Nothing here needs torch, except reading a model and making views.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from gradbase.common.errors import StoreError

if TYPE_CHECKING:
    from mmap import mmap

    import torch

    Memory = torch.Tensor | memoryview | bytearray | mmap

PAGE_BYTES = 1 << 20
ALIGNMENT_BYTES = 64  # what torch's CPU allocator promises to kernels
BLOCK_BYTES = 4096  # tensors of at least a page start here, for direct writes of a checkpoint
ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
KINDS = ("parameter", "rows", "buffer")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named tensor of the store.

    kind: "parameter" (pushes are gradients), "rows" (a parameter [rows, ...] pulled and pushed by row), or "buffer"
    (not trained: a push assigns). dtype: torch's name without "torch.". stride: in elements, None if contiguous.
    aliases: other names of the same tensor (tied weights). cost: bytes moved to update one byte of it, for placing.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    kind: str = "parameter"
    stride: tuple[int, ...] | None = None
    aliases: tuple[str, ...] = ()
    cost: float = 1.0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]

    @property
    def row_numel(self) -> int:
        """Elements of a row, for kind "rows"."""
        return math.prod(self.shape[1:])


class Page(NamedTuple):
    """Elements [start, start + numel) of a tensor, in memory order; nbytes, offset and place are in bytes."""

    number: int
    tensor: int
    start: int
    numel: int
    nbytes: int
    offset: int
    shard: int
    place: int


@dataclass(frozen=True)
class Layout:
    """Tensors, their pages, and the shard of each; made by `lay_out`."""

    tensors: tuple[TensorSpec, ...]
    pages: tuple[Page, ...]
    shard_count: int
    page_bytes: int
    slab_nbytes: int
    home_nbytes: tuple[int, ...]

    def of_shard(self, shard: int) -> tuple[Page, ...]:
        """The pages of a shard, in the order in which a step needs them."""
        return self._by_shard[shard]

    def of_tensor(self, name: str) -> tuple[Page, ...]:
        """The pages of a tensor from its first element to its last."""
        return self._by_tensor[self.index_of(name)]

    def index_of(self, name: str) -> int:
        """The number of a tensor, by its name or an alias."""
        try:
            return self._numbers[name]
        except KeyError:
            raise StoreError(f"the store has no tensor {name!r}", f"it has {_some(self._numbers)}") from None

    def spec(self, name: str) -> TensorSpec:
        return self.tensors[self.index_of(name)]

    def page_of_row(self, name: str, row: int) -> tuple[Page, int]:
        """The page that holds a row of a "rows" tensor, and the row's number within the page."""
        spec, pages = self.spec(name), self.of_tensor(name)
        rows_per_page = pages[0].numel // spec.row_numel
        return pages[row // rows_per_page], row % rows_per_page

    def first_row(self, page: Page, *, home: bool = False) -> int:
        """The row of a "rows" tensor that a page starts with, counted in the slab or among the rows of its shard."""
        spec = self.tensors[page.tensor]
        if not home:
            return page.start // spec.row_numel
        here = next(other for other in self._by_tensor[page.tensor] if other.shard == page.shard)
        return (page.place - here.place) // (spec.row_numel * ITEM_BYTES[spec.dtype])

    @cached_property
    def loads(self) -> tuple[float, ...]:
        """The load of each shard, in the weights that placed it: bytes held plus bytes moved by an update."""
        return tuple(
            sum(_weight(self.tensors[page.tensor], page.nbytes) for page in self.of_shard(shard))
            for shard in range(self.shard_count)
        )

    @cached_property
    def imbalance(self) -> float:
        """The most loaded shard over the mean; 1 is perfect. At most 1 + (shards - 1) * largest page / total load."""
        total = sum(self.loads)
        return max(self.loads) * self.shard_count / total if total else 1.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that fixes an address, as 64 hex digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What `from_json` needs to make the same layout again: the tensors, and the shard of each page."""
        return {
            "page_bytes": self.page_bytes,
            "shard_count": self.shard_count,
            "tensors": [asdict(spec) for spec in self.tensors],
            "shards": [page.shard for page in self.pages],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Layout:
        """Read a layout as `to_json` wrote it; StoreError if it is none."""
        try:
            tensors = tuple(_spec_of(item) for item in data["tensors"])
            shards, shard_count = list(map(int, data["shards"])), int(data["shard_count"])
            page_bytes = int(data["page_bytes"])
        except (KeyError, TypeError, ValueError) as error:
            raise _bad_layout(f"{type(error).__name__}: {error}") from error
        _check(tensors, shard_count, page_bytes)
        if len(shards) != sum(len(cut(spec, page_bytes)) for spec in tensors):
            raise _bad_layout(f"it places {len(shards)} pages, the tensors have another number")
        if not all(0 <= shard < shard_count for shard in shards):
            raise _bad_layout(f"a page lies on a shard that is not among 0 to {shard_count - 1}")
        return _assemble(tensors, shard_count, page_bytes, lambda weights: shards)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, spec in enumerate(self.tensors) for name in (spec.name, *spec.aliases)}

    @cached_property
    def _by_tensor(self) -> list[tuple[Page, ...]]:
        lists: list[list[Page]] = [[] for _ in self.tensors]
        for page in self.pages:
            lists[page.tensor].append(page)
        return [tuple(pages) for pages in lists]

    @cached_property
    def _by_shard(self) -> list[tuple[Page, ...]]:
        lists: list[list[Page]] = [[] for _ in range(self.shard_count)]
        for page in self.pages:
            lists[page.shard].append(page)
        return [tuple(pages) for pages in lists]


def lay_out(tensors: Iterable[TensorSpec], shard_count: int, *, page_bytes: int = PAGE_BYTES) -> Layout:
    """Cut tensors into pages and place these on shards.

    `tensors` come in the order in which a step needs them. Placement is greedy, the heaviest page first, onto the
    shard with the least load (LPT): the most loaded shard carries at most 4/3 - 1/(3 shards) times what it would in the
    best placement (Graham, Bounds on Multiprocessing Timing Anomalies, 1969), and at most the mean plus one page.
    """
    specs = tuple(tensors)
    _check(specs, shard_count, page_bytes)
    return _assemble(specs, shard_count, page_bytes, lambda weights: place(weights, shard_count))


def cut(spec: TensorSpec, page_bytes: int = PAGE_BYTES) -> list[tuple[int, int]]:
    """A tensor's pages as (first element, elements).

    All but the last have the same size: a multiple of 64 bytes, so that every page starts where kernels like it, and
    of whole rows for "rows" (where both do not fit into a page, of whole rows).
    """
    item = ITEM_BYTES[spec.dtype]
    unit = spec.row_numel if spec.kind == "rows" else 1
    grain = math.lcm(unit * item, ALIGNMENT_BYTES) // item
    if grain * item > page_bytes:
        grain = unit
    step = max(page_bytes // (grain * item), 1) * grain
    return [(start, min(step, spec.numel - start)) for start in range(0, spec.numel, step)]


def place(weights: Sequence[float], shard_count: int) -> list[int]:
    """The shard of each weight, by LPT; ties go to the lower number, so the answer depends on nothing else."""
    loads = [(0.0, shard) for shard in range(shard_count)]
    shards = [0] * len(weights)
    for index in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        load, shard = loads[0]
        heapq.heapreplace(loads, (load + weights[index], shard))
        shards[index] = shard
    return shards


def specs_of_model(
    model: torch.nn.Module,
    *,
    rows: Iterable[str] = (),
    order: Sequence[str] = (),
    costs: Mapping[str, float] | None = None,
) -> tuple[TensorSpec, ...]:
    """The parameters and buffers of a model, each once, tied names as aliases.

    rows: names of parameters that are pulled and pushed by row. order: names in the order of need (`order_of_use`);
    what is missing follows in the model's own order. costs: bytes moved to update a byte, by name.
    """
    found = _tensors_of(model)
    wanted = set(rows)
    first = {name: i for i, name in enumerate(order)}
    names = sorted(found, key=lambda name: first.get(name, len(first)))
    aliases = {alias for _, others, _ in found.values() for alias in others}
    if unknown := sorted(wanted - found.keys() - aliases):
        raise StoreError(f"no parameter is called {unknown[0]!r}", f"the model has {_some(found)}")
    specs = []
    for name in names:
        tensor, others, kind = found[name]
        kind = "rows" if kind == "parameter" and wanted & {name, *others} else kind
        specs.append(_spec_of_tensor(name, tensor, others, kind, (costs or {}).get(name, 1.0)))
    return tuple(specs)


def order_of_use(model: torch.nn.Module, run: Callable[[], object]) -> list[str]:
    """Names of parameters in the order in which the modules that own them are called by `run`."""
    seen: dict[str, None] = {}
    names = {id(p): name for name, p in model.named_parameters()}

    def note(module: torch.nn.Module, _: object) -> None:
        for parameter in module.parameters(recurse=False):
            seen.setdefault(names[id(parameter)])

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(seen)


def tensor_view(layout: Layout, memory: Memory, name: str) -> torch.Tensor:
    """A tensor of the store as one view into a slab, in the shape and strides of the model's.

    `memory` is a uint8 tensor, or anything with a writable buffer (mmap, SharedMemory.buf); of the latter every view
    is a storage of its own.
    """
    spec, pages = layout.spec(name), layout.of_tensor(name)
    flat = elements(memory, pages[0].offset if pages else 0, spec.numel, spec.dtype)
    return flat.view(spec.shape) if spec.stride is None else flat.as_strided(spec.shape, spec.stride)


def page_view(layout: Layout, memory: Memory, page: Page, *, home: bool = False) -> torch.Tensor:
    """The elements of a page, [numel], as a view into a slab or, with `home`, into the home of the page's shard."""
    offset = page.place if home else page.offset
    return elements(memory, offset, page.numel, layout.tensors[page.tensor].dtype)


def flatten(spec: TensorSpec, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's elements in the order of the store's memory, [numel]; a view where it has the strides of the spec."""
    if spec.stride is None:
        return tensor.reshape(-1)
    ordered = tensor if tuple(tensor.stride()) == spec.stride else _restrided(spec, tensor)
    return ordered.as_strided((spec.numel,), (1,))


def _restrided(spec: TensorSpec, tensor: torch.Tensor) -> torch.Tensor:
    import torch

    assert spec.stride is not None
    return torch.empty_strided(spec.shape, spec.stride, dtype=tensor.dtype).copy_(tensor)


def home_view(layout: Layout, memory: Memory, name: str, shard: int) -> torch.Tensor:
    """The rows of a "rows" tensor that a shard holds, [local rows, ...], as one view into its home."""
    spec = layout.spec(name)
    pages = [page for page in layout.of_tensor(name) if page.shard == shard]
    numel = sum(page.numel for page in pages)
    return elements(memory, pages[0].place if pages else 0, numel, spec.dtype).view(-1, *spec.shape[1:])


def elements(memory: Memory, offset: int, numel: int, dtype: str) -> torch.Tensor:
    """[numel] elements of a dtype from a byte offset of a uint8 tensor or a buffer, without a copy."""
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    if isinstance(memory, torch.Tensor):
        return memory[offset : offset + numel * kind.itemsize].view(kind)
    if numel == 0:
        return torch.empty(0, dtype=kind)
    return torch.frombuffer(memory, dtype=kind, count=numel, offset=offset)


def _assemble(
    tensors: tuple[TensorSpec, ...], shard_count: int, page_bytes: int, choose: Callable[[list[float]], list[int]]
) -> Layout:
    pieces = [(i, start, numel) for i, spec in enumerate(tensors) for start, numel in cut(spec, page_bytes)]
    sizes = [numel * ITEM_BYTES[tensors[i].dtype] for i, _, numel in pieces]
    shards = choose([_weight(tensors[piece[0]], size) for piece, size in zip(pieces, sizes, strict=True)])
    bases, slab_nbytes = _bases(tensors, page_bytes)
    homes, last = [0] * shard_count, [-1] * shard_count
    pages = []
    for number, ((i, start, numel), nbytes, shard) in enumerate(zip(pieces, sizes, shards, strict=True)):
        offset = bases[i] + start * ITEM_BYTES[tensors[i].dtype]
        # No gap between the pages of one tensor, so that the rows of a table that lie here are one view.
        place = homes[shard] if last[shard] == i else _up(homes[shard], ALIGNMENT_BYTES)
        pages.append(Page(number, i, start, numel, nbytes, offset, shard, place))
        homes[shard], last[shard] = place + nbytes, i
    home_nbytes = tuple(_up(nbytes, BLOCK_BYTES) for nbytes in homes)
    return Layout(tensors, tuple(pages), shard_count, page_bytes, slab_nbytes, home_nbytes)


def _bases(tensors: Sequence[TensorSpec], page_bytes: int) -> tuple[list[int], int]:
    """Where each tensor starts in the slab, and the slab's size."""
    bases, end = [], 0
    for spec in tensors:
        end = _up(end, BLOCK_BYTES if spec.nbytes >= page_bytes else ALIGNMENT_BYTES)
        bases.append(end)
        end += spec.nbytes
    return bases, _up(end, BLOCK_BYTES)


def _weight(spec: TensorSpec, nbytes: int) -> float:
    return nbytes * (1.0 + spec.cost)


def _up(value: int, grain: int) -> int:
    return -(-value // grain) * grain


def _check(tensors: Sequence[TensorSpec], shard_count: int, page_bytes: int) -> None:
    if shard_count < 1 or page_bytes < ALIGNMENT_BYTES:
        raise _bad_layout(f"{shard_count} shards, pages of {page_bytes} bytes")
    names: set[str] = set()
    for spec in tensors:
        if spec.dtype not in ITEM_BYTES:
            raise StoreError(f"tensor {spec.name!r} has dtype {spec.dtype}", f"a store holds {', '.join(ITEM_BYTES)}")
        if spec.kind not in KINDS or (spec.kind == "rows" and (len(spec.shape) < 2 or spec.row_numel < 1)):
            raise _bad_layout(f"tensor {spec.name!r} of shape {list(spec.shape)} cannot be of kind {spec.kind!r}")
        if min(spec.shape, default=1) < 0 or not 0 <= spec.cost < math.inf:
            raise _bad_layout(f"tensor {spec.name!r} has shape {list(spec.shape)} and cost {spec.cost}")
        if doubled := names & {spec.name, *spec.aliases}:
            raise _bad_layout(f"two tensors are called {min(doubled)!r}")
        names |= {spec.name, *spec.aliases}


def _spec_of(item: Mapping[str, Any]) -> TensorSpec:
    fields = dict(item)
    fields["shape"] = tuple(map(int, fields["shape"]))
    fields["stride"] = None if fields["stride"] is None else tuple(map(int, fields["stride"]))
    fields["aliases"] = tuple(map(str, fields["aliases"]))
    fields["cost"] = float(fields["cost"])
    return TensorSpec(**fields)


def _tensors_of(model: torch.nn.Module) -> dict[str, tuple[torch.Tensor, tuple[str, ...], str]]:
    """First name -> (tensor, other names, kind), in the model's order."""
    persistent = model.state_dict(keep_vars=True).keys()
    first: dict[int, str] = {}
    found: dict[str, tuple[torch.Tensor, tuple[str, ...], str]] = {}
    everything: list[tuple[str, torch.Tensor, str]]
    everything = [(n, p, "parameter") for n, p in model.named_parameters(remove_duplicate=False)]
    everything += [(n, b, "buffer") for n, b in model.named_buffers(remove_duplicate=False) if n in persistent]
    for name, tensor, kind in everything:
        if id(tensor) in first:
            known, others, kind = found[first[id(tensor)]]
            found[first[id(tensor)]] = known, (*others, name), kind
        else:
            first[id(tensor)] = name
            found[name] = tensor, (), kind
    return found


def _spec_of_tensor(name: str, tensor: torch.Tensor, aliases: tuple[str, ...], kind: str, cost: float) -> TensorSpec:
    dense = tensor.is_contiguous() or kind == "rows" or not _fills_its_memory(tensor)
    stride = None if dense else tuple(tensor.stride())
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name, tuple(tensor.shape), dtype, kind, stride, aliases, cost)


def _fills_its_memory(tensor: torch.Tensor) -> bool:
    """Whether the strides visit numel consecutive elements, each once (channels_last does)."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _some(names: Iterable[str]) -> str:
    found = list(names)
    shown = ", ".join(found[:6])
    return f"{shown}, ... ({len(found)} in all)" if len(found) > 6 else shown or "none"


def _bad_layout(why: str) -> StoreError:
    return StoreError(f"this is no layout of a store: {why}", "make it with lay_out, or read it from a MANIFEST.json")
