"""Shards: every sample once, fair shares, the same global batches at any number of workers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from train_jobs.parallel.shards import batches, mirrored, noise, seed_noise

SAMPLES = st.integers(1, 300)
BATCH = st.integers(1, 64)
WORLD = st.integers(1, 9)
EPOCH = st.integers(0, 50)
SEED = st.integers(0, 2**31)


def all_shares(samples: int, batch: int, world: int, epoch: int, seed: int) -> list[list[list[int]]]:
    """[step][rank] -> indices."""
    by_rank = [
        list(batches(samples, batch, epoch=epoch, seed=seed, rank=rank, world_size=world)) for rank in range(world)
    ]
    assert len({len(steps) for steps in by_rank}) == 1, "a worker with fewer steps would leave the others waiting"
    return [[share[0].tolist() for share in step] for step in zip(*by_rank, strict=True)]


@given(SAMPLES, BATCH, WORLD, EPOCH, SEED)
def test_every_sample_is_seen_exactly_once_in_an_epoch(
    samples: int, batch: int, world: int, epoch: int, seed: int
) -> None:
    steps = all_shares(samples, batch, world, epoch, seed)
    assert sorted(i for step in steps for share in step for i in share) == list(range(samples))


@given(SAMPLES, BATCH, WORLD, EPOCH, SEED)
def test_shares_of_a_batch_differ_by_one_at_most(samples: int, batch: int, world: int, epoch: int, seed: int) -> None:
    for step in all_shares(samples, batch, world, epoch, seed):
        sizes = [len(share) for share in step]
        assert max(sizes) - min(sizes) <= 1


@given(SAMPLES, BATCH, WORLD, EPOCH, SEED)
def test_the_shares_of_a_step_make_up_the_batch_that_one_worker_would_see(
    samples: int, batch: int, world: int, epoch: int, seed: int
) -> None:
    alone = list(batches(samples, batch, epoch=epoch, seed=seed))
    together = all_shares(samples, batch, world, epoch, seed)
    assert len(alone) == len(together)
    for (whole, size), shares in zip(alone, together, strict=True):
        assert sorted(whole.tolist()) == sorted(i for share in shares for i in share)
        assert size == len(whole)


@given(SAMPLES, BATCH, WORLD, EPOCH, SEED)
def test_each_worker_hears_the_size_of_the_whole_batch(
    samples: int, batch: int, world: int, epoch: int, seed: int
) -> None:
    for rank in range(world):
        sizes = [size for _, size in batches(samples, batch, epoch=epoch, seed=seed, rank=rank, world_size=world)]
        assert sum(sizes) == samples
        assert all(size == batch for size in sizes[:-1])


def test_the_order_changes_with_epoch_and_seed_and_repeats_for_both() -> None:
    def order(epoch: int, seed: int) -> list[int]:
        return next(batches(100, 100, epoch=epoch, seed=seed))[0].tolist()

    assert order(3, 7) == order(3, 7)
    assert len({tuple(order(epoch, seed)) for epoch in range(4) for seed in range(4)}) == 16


@given(SAMPLES, BATCH, EPOCH, SEED, st.integers(0, 400))
def test_what_is_skipped_is_what_came_first(samples: int, batch: int, epoch: int, seed: int, skip: int) -> None:
    everything = [share.tolist() for share, _ in batches(samples, batch, epoch=epoch, seed=seed)]
    rest = [share.tolist() for share, _ in batches(samples, batch, epoch=epoch, seed=seed, skip=skip)]
    assert rest == everything[skip:]


def test_about_half_are_mirrored_and_others_in_each_epoch() -> None:
    chosen = [mirrored(1000, epoch=epoch, seed=0) for epoch in range(2)]
    assert all(450 < int(each.sum()) < 550 for each in chosen)
    assert 400 < int((chosen[0] ^ chosen[1]).sum()) < 600
    assert torch.equal(chosen[0], mirrored(1000, epoch=0, seed=0))


def test_dropout_s_noise_differs_by_worker_and_step_and_repeats() -> None:
    def draw(step: int, seed: int, rank: int) -> float:
        seed_noise(step=step, seed=seed, rank=rank)
        return float(torch.rand(1))

    drawn = [draw(step, seed, rank) for step in range(20) for seed in range(2) for rank in range(20)]
    assert len(set(drawn)) > 0.999 * len(drawn), "no two workers share a stream in any step"
    assert draw(1, 0, 2) == draw(1, 0, 2)


def test_noise_depends_on_seed_step_and_stream_and_nothing_else() -> None:
    first = noise((4, 3), 1, 2, 0)
    torch.manual_seed(5)
    assert torch.equal(noise((4, 3), 1, 2, 0), first)
    others = [noise((4, 3), *numbers) for numbers in ((2, 2, 0), (1, 3, 0), (1, 2, 1))]
    assert not any(torch.equal(other, first) for other in others)
