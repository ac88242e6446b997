"""Workers with confusion matrices, items with hidden subtypes: one member of the ensemble.

Every class k has `subtypes` kinds of items; worker w labels an item of kind (k, m) with y by theta[w, (k, m), y]
(Li, Rubinstein, Cohn: Exploiting Worker Correlation for Label Aggregation in Crowdsourcing, ICML 2019). With one
subtype that is the confusion model of Dawid and Skene (1979) with priors (Kim, Ghahramani 2012). Rows theta have
Dirichlet priors: fixed ones that lean to the diagonal, or learned ones, whose mean is the crowd's own confusion and
whose strength maximises the evidence (fixed point of Minka, Estimating a Dirichlet distribution, 2000). Inference is
variational Bayes, or with `mean_field=False` expectation-maximisation on the posterior means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradbase.tables.crowd._noise import class_noise
from gradbase.tables.crowd._table import Table

STRENGTH_LIMITS = (0.5, 200.0)  # of a learned prior, in claims
BLOCK_ITEMS = 16_384
SETTLED = 1e-4  # the largest change of a probability in a round that is taken for convergence


@dataclass(frozen=True)
class Member:
    """How one member differs from the others."""

    subtypes: int = 1
    learned: bool = False
    mean_field: bool = True
    smoothing: float = 0.0  # of the vote shares that inference starts from
    seed: int = 0
    rounds: int = 40
    diagonal: float = 2.0  # pseudo-claims of a fixed prior on the right label, and on each other one
    elsewhere: float = 0.5
    sparsity: float = 0.1  # Dirichlet of the subtypes' shares within a class

    @property
    def name(self) -> str:
        prior = "learned" if self.learned else "fixed"
        return f"{self.subtypes}-{prior}-{'mean-field' if self.mean_field else 'maximum'}-{self.seed}"


@dataclass(frozen=True)
class Fit:
    """What a member has learned, as sums over claims and items: `counts` float[cells, kinds] expected claims by worker
    and label, `mass` float[kinds] expected items; and `posterior` float[n_items, K]."""

    counts: Tensor
    mass: Tensor
    posterior: Tensor


def fit(
    table: Table, member: Member, tilt: Tensor | None = None, start: Fit | None = None, rounds: int | None = None
) -> Fit:
    """Alternate between what items are and how workers err. `tilt` float[n_items, K] is added to the log prior of
    each item (what a classifier knows); `start` goes on from the sums of an earlier fit, of the same workers and
    classes but perhaps other items."""
    strength = torch.full((table.n_classes * member.subtypes,), 4.0, dtype=table.dtype)
    if start is None:
        kinds = _start(table, member)
    else:
        theta, strength = _worker_step(table, member, start.counts.to(table.dtype), strength, learn=True)
        kinds = _weigh(table, member, theta, _shares(member, start.mass.to(table.dtype)), tilt)
    previous = None
    for turn in range(member.rounds if rounds is None else rounds):
        counts = table.over_cells(kinds)
        theta, strength = _worker_step(table, member, counts, strength, learn=turn > 1 or start is not None)
        prior = _shares(member, kinds.sum(0))
        del kinds  # before the next ones come
        kinds = _weigh(table, member, theta, prior, tilt)
        if turn % 4 == 3 and previous is not None and float((kinds - previous).abs().max()) < SETTLED:
            break
        previous = kinds if turn % 4 == 2 else previous
    return Fit(counts, kinds.sum(0), _by_class(kinds, table.n_classes))


def _start(table: Table, member: Member) -> Tensor:
    votes = table.votes() + member.smoothing
    total = votes.sum(1, keepdim=True)
    shares = torch.where(total > 0, votes / total.clamp(min=1e-9), 1.0 / table.n_classes)
    if member.subtypes == 1:
        return shares
    noise = class_noise(table, member.subtypes, member.seed).to(table.dtype)
    return (shares[:, :, None] * noise).reshape(table.n_items, -1)


def _weigh(table: Table, member: Member, theta: Tensor, prior: Tensor, tilt: Tensor | None) -> Tensor:
    """float[n_items, kinds]: the posterior of each item's kind."""
    log_odds = table.over_items(theta)
    log_odds += prior
    if tilt is not None:
        log_odds += tilt.to(table.dtype).repeat_interleave(member.subtypes, 1)
    for block in log_odds.split(BLOCK_ITEMS):  # in the cache, and without a second array of this size
        block.copy_(torch.softmax(block, 1))
    return log_odds


def _by_class(kinds: Tensor, n_classes: int) -> Tensor:
    return kinds.reshape(len(kinds), n_classes, -1).sum(2)


def _shares(member: Member, mass: Tensor) -> Tensor:
    """float[kinds]: expected log shares of the kinds from their masses, those of a class sparse."""
    mass = mass.reshape(-1, member.subtypes)
    classes = mass.sum(1) + 1.0
    within = mass + member.sparsity
    log = torch.digamma if member.mean_field else torch.log
    of_class = log(classes) - log(classes.sum())
    return (of_class[:, None] + log(within) - log(within.sum(1, keepdim=True))).reshape(-1)


def _worker_step(
    table: Table, member: Member, counts: Tensor, strength: Tensor, learn: bool
) -> tuple[Tensor, Tensor]:
    """log theta float[cells, kinds] from expected counts, and the strength of a learned prior."""
    cube = counts.reshape(table.n_workers, table.n_classes, -1)
    if member.learned:
        mean = _crowd_mean(cube)
        if learn:
            strength = _strength(cube, mean, strength)
        total = cube + strength * mean
    else:
        total = cube + _fixed(member, table.n_classes, cube.dtype)
    whole = total.sum(1, keepdim=True)
    log = torch.digamma if member.mean_field else torch.log
    return (log(total) - log(whole)).reshape(counts.shape), strength


def _fixed(member: Member, n_classes: int, dtype: torch.dtype) -> Tensor:
    """float[K labels, kinds] pseudo-claims."""
    square = torch.full((n_classes, n_classes), member.elsewhere, dtype=dtype).fill_diagonal_(member.diagonal)
    return square.repeat_interleave(member.subtypes, 1)


def _crowd_mean(cube: Tensor) -> Tensor:
    """float[K labels, kinds]: the confusion of all workers together, a little smoothed."""
    n_classes = cube.shape[1]
    subtypes = cube.shape[2] // n_classes
    lean = torch.eye(n_classes, dtype=cube.dtype).repeat_interleave(subtypes, 1)
    crowd = cube.sum(0) + 0.5 * lean + 0.5 / n_classes
    return crowd / crowd.sum(0)


def _strength(cube: Tensor, mean: Tensor, strength: Tensor) -> Tensor:
    """float[kinds]: prior strength in claims, three steps of Minka's fixed point with a weak exponential hyperprior."""
    claims = cube.sum(1)
    for _ in range(3):
        alpha = strength * mean
        gain = (mean * (torch.digamma(cube + alpha) - torch.digamma(alpha))).sum((0, 1)) + 1.0 / strength
        loss = (torch.digamma(claims + strength) - torch.digamma(strength)).sum(0) + 1.0 / 8
        strength = (strength * gain / loss).clamp(*STRENGTH_LIMITS)
    return strength

