"""Which images make a batch, and the seeds of their augmentations: known from the seed of the run alone."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch


class Batch(NamedTuple):
    """One process's part of a batch.

    Attributes:
        indices: which images, int64 of shape (n,).
        seeds: what decides the augmentation of each view of each image, int64 of shape (views, n), from 0 up.
    """

    indices: torch.Tensor
    seeds: torch.Tensor


def epoch_batches(
    labels: torch.Tensor,
    batch_size: int,
    per_class: int,
    seed: int,
    epoch: int,
    *,
    views: int = 1,
    rank: int = 0,
    world: int = 1,
    skip: int = 0,
) -> Iterator[Batch]:
    """One epoch of batches that visits every sample once.

    The samples of each class are shuffled and cut into groups of ``per_class``; the groups are shuffled and laid end to
    end. ``per_class=1`` is a plain shuffle. The last batch has what remains; it is left out where that is less than two
    samples a process.

    Args:
        labels: integer class labels of shape (n,), from 0.
        batch_size: samples in a batch of all processes together, at least two a process.
        per_class: how many samples of a class come together.
        seed, epoch: what decides the batches, not negative.
        views: how many augmentations of each sample there are to be.
        rank, world: this process is the ``rank``-th of ``world``, and gets its part of each batch: contiguous, nearly
            as large as the others', and with the seeds that the samples would have in a single process.
        skip: how many batches to pass over at the start.

    Raises:
        ValueError: ``batch_size`` is too small.
    """
    if batch_size < 2 * world:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 2 for each of {world} processes")
    # A torch generator looks at 32 bits of its seed, into which numpy mixes both numbers.
    mixed = int(np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(1)[0])
    generator = torch.Generator().manual_seed(mixed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # A group starts at every per_class-th sample of a class.
    sizes = labels.bincount()
    starts = (torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)) % per_class == 0
    places = torch.randperm(int(starts.sum()), generator=generator)
    order = by_class[places[starts.cumsum(0) - 1].argsort(stable=True)]
    seeds = torch.randint(2**63 - 1, (views, len(order)), generator=generator)

    batches = zip(order.split(batch_size), seeds.split(batch_size, dim=1), strict=True)
    for parts in islice(batches, skip, batches_per_epoch(len(labels), batch_size, world)):
        yield Batch(*(part.tensor_split(world, dim=-1)[rank] for part in parts))


def batches_per_epoch(n: int, batch_size: int, world: int) -> int:
    """How many batches :func:`epoch_batches` makes of ``n`` samples when nothing is skipped."""
    whole, rest = divmod(n, batch_size)
    return whole + (rest >= 2 * world)


def evaluation_batches(n: int, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
    """The ``rank``-th of ``world`` contiguous, nearly equal parts of ``n`` samples, in order; the seeds are 0.

    A process gets no batch where there are fewer samples than processes.
    """
    for indices in torch.arange(n).tensor_split(world)[rank].split(batch_size):
        if len(indices):
            yield Batch(indices, torch.zeros(1, len(indices), dtype=torch.int64))
