"""Every sample exactly once, one bucket a batch, equal counts on all ranks (traps T2, T9, T14, T34, T46, T57)."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrec import registry
from openrec.data.samplers import BatchSampler, MultiScaleSampler, RatioSampler
from openrec.errors import ConfigError


class Fake:
    """A data set that is nothing but buckets."""

    def __init__(self, buckets):
        self.buckets = np.array(buckets, np.int64)

    def __len__(self):
        return len(self.buckets)


def ratio(dataset, world, rank, bs=8, training=True, **more):
    return RatioSampler(dataset, [[128, 32]], bs, is_training=training, rank=rank, world_size=world, **more)


def ranks(make, world, epoch=1, start=0):
    """The batches of every rank."""
    out = []
    for rank in range(world):
        sampler = make(rank)
        sampler.set_epoch(epoch, start)
        out.append(list(sampler))
        if start == 0:
            assert len(out[-1]) == len(sampler)
    return out


def merged(per_rank):
    """Global batches as tuples of indices, without fillers."""
    return [tuple(p.index for part in parts for p in part if p.weight > 0) for parts in zip(*per_rank, strict=True)]


buckets = st.lists(st.integers(1, 12), min_size=1, max_size=150)


@settings(max_examples=60, deadline=None)
@given(buckets, st.integers(1, 5), st.integers(1, 17), st.integers(1, 3))
def test_training_serves_every_sample_once(q, world, bs, epoch):
    data = Fake(q)
    per_rank = ranks(lambda r: ratio(data, world, r, bs), world, epoch)
    assert len({len(b) for b in per_rank}) == 1  # T9
    seen = [p.index for batches in per_rank for batch in batches for p in batch if p.weight > 0]
    assert sorted(seen) == list(range(len(q)))  # T2
    for batches in per_rank:
        for batch in batches:
            assert batch and len({(p.ratio, p.weight, p.epoch) for p in batch}) == 1
            assert batch[0].ratio == q[batch[0].index] and batch[0].epoch == epoch
    for parts in zip(*per_rank):
        assert len({part[0].ratio for part in parts}) == 1
        assert sum(part[0].weight for part in parts) == pytest.approx(world)


@settings(max_examples=40, deadline=None)
@given(buckets, st.integers(1, 5), st.integers(1, 17))
def test_evaluation_serves_every_sample_once(q, world, bs):
    data = Fake(q)
    per_rank = ranks(lambda r: ratio(data, world, r, bs, training=False), world)
    seen = [p.index for batches in per_rank for batch in batches for p in batch]
    assert sorted(seen) == list(range(len(q)))
    assert all(p.weight == 1 for batches in per_rank for batch in batches for p in batch)
    assert per_rank == ranks(lambda r: ratio(data, world, r, bs, training=False, seed=9), world, epoch=4)


@settings(max_examples=40, deadline=None)
@given(buckets, st.integers(2, 5), st.integers(1, 9))
def test_ranks_share_the_batches_of_one_process(q, world, bs):
    data = Fake(q)
    together = merged(ranks(lambda r: ratio(data, world, r, bs), world, 2))
    alone = merged(ranks(lambda r: ratio(data, 1, r, bs * world), 1, 2))
    assert together == alone


@pytest.mark.parametrize("world", [1, 2, 3])
def test_multiple_of_the_batch_size_is_not_lost(world):
    # T2: 512 of 612 samples vanished; an evaluation set of 32 with batch 8 gave no batch
    data = Fake([1] * 512 + [2] * 100)
    seen = {p.index for batches in ranks(lambda r: ratio(data, world, r, 256), world) for b in batches for p in b}
    assert len(seen) == 612
    assert len(ratio(Fake([3] * 32), 1, 0, 8, training=False)) == 4


def test_equal_counts_where_openocr_had_three_and_two():
    data = Fake([1] * 513 + [2] * 100)  # T9
    assert [len(b) for b in ranks(lambda r: ratio(data, 2, r, 128), 2)] == [4, 4]


@pytest.mark.parametrize("first, sizes", [(256, (204, 170, 146, 128, 113, 102, 93, 85)), (128, (102, 85, 73, 64, 56))])
def test_batch_sizes_of_wide_buckets(first, sizes):
    sampler = ratio(Fake([1]), 1, 0, first)
    assert [sampler.global_batch_size(q) for q in range(1, 5)] == [first] * 4
    assert tuple(sampler.global_batch_size(q) for q in range(5, 5 + len(sizes))) == sizes


def test_order_depends_on_seed_and_epoch_only():
    data = Fake([1, 2, 4, 4, 4, 7] * 20)

    def order(seed=0, epoch=1):
        return merged(ranks(lambda r: ratio(data, 1, r, seed=seed), 1, epoch))

    state = random.getstate(), np.random.get_state()[1].copy()
    assert order() == order() and order(epoch=2) != order() and order(seed=1) != order()
    assert random.getstate() == state[0] and (np.random.get_state()[1] == state[1]).all()  # T14


def test_resuming_inside_an_epoch_continues_where_it_stopped():
    data = Fake([1, 2, 4, 4, 4, 7] * 20)
    for world in (1, 3):
        whole = ranks(lambda r, w=world: ratio(data, w, r), world, 3)
        rest = ranks(lambda r, w=world: ratio(data, w, r), world, 3, start=4)
        assert rest == [batches[4:] for batches in whole]


def test_fewer_samples_than_ranks_gives_fillers_of_weight_zero():
    per_rank = ranks(lambda r: ratio(Fake([4, 4]), 4, r), 4)
    assert [batches[0][0].weight for batches in per_rank] == [2, 2, 0, 0]
    assert all(len(batches) == 1 and len(batches[0]) == 1 for batches in per_rank)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 100), st.integers(1, 4), st.integers(1, 9), st.booleans(), st.booleans())
def test_plain_sampler(n, world, bs, shuffle, drop_last):
    data = Fake([0] * n)
    per_rank = ranks(lambda r: BatchSampler(data, bs, shuffle, drop_last, rank=r, world_size=world), world)
    seen = sorted(p.index for batches in per_rank for b in batches for p in b if p.weight > 0)
    assert len(seen) == len(set(seen))
    assert len(seen) == (n // (bs * world) * bs * world if drop_last and n >= bs * world else n)
    batches = merged(per_rank)
    again = merged(ranks(lambda r: BatchSampler(data, bs, shuffle, rank=r, world_size=world), world, 2))
    if shuffle and n > 20 and not drop_last:
        assert batches != again  # T34: reshuffled every epoch
    scored = ranks(
        lambda r: BatchSampler(data, bs, shuffle, drop_last, rank=r, world_size=world, is_training=False), world
    )
    assert sorted(p.index for b in scored for part in b for p in part) == list(range(n))


SCALES = [[320, 32], [256, 32], [320, 64]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.integers(1, 3), st.integers(1, 9), st.booleans(), st.booleans())
def test_multi_scale_sampler(n, world, bs, fix, widths):
    data = SimpleNamespace(ds_width=widths, ratio=np.random.default_rng(n).uniform(0.5, 30, n))
    data.__len__ = lambda: n

    class Sized(SimpleNamespace):
        def __len__(self):
            return n

    data = Sized(ds_width=widths, ratio=data.ratio)
    make = lambda r: MultiScaleSampler(data, SCALES, bs, fix, [8, 16], rank=r, world_size=world)  # noqa: E731
    per_rank = ranks(make, world)
    assert sorted(p.index for b in per_rank for part in b for p in part if p.weight > 0) == list(range(n))
    for parts in zip(*per_rank):
        assert len({p.size for part in parts for p in part}) == 1
        (w, h) = parts[0][0].size
        assert h in (32, 64) and w % 8 == 0 and w <= 480
        if not widths:
            assert [w, h] in SCALES
        if fix:
            assert sum(len(part) for part in parts) <= max(bs * world, world)


def test_multi_scale_rounds_sizes_down_and_keeps_pixels():
    sampler = MultiScaleSampler(Fake([0] * 50), [[325, 50], [100, 100]], 8, False, [8, 16])
    assert sampler._sizes() == [(320, 48, 325 * 50 * 8 // (320 * 48)), (96, 96, 325 * 50 * 8 // (96 * 96))]
    plain = MultiScaleSampler(Fake([0] * 50), [[325, 50], [100, 100]], 8, False, [8, 16], is_training=False)
    assert {p.size for b in plain for p in b} == {(325, 50)}


def test_keys_without_effect_are_accepted_with_a_warning(caplog):
    registry._warned.clear()
    cfg = {"name": "RatioSampler", "scales": [[128, 32]], "fix_bs": False, "divided_factor": [4, 16], "max_ratio": 10}
    sampler = registry.build("sampler", cfg, "Train.sampler", dataset=Fake([1]), rank=0, world_size=1)
    assert len(sampler) == 1 and caplog.text.count("no effect") == 3  # T57


def test_bad_arguments_are_refused():
    for scales in ([], [[128]], "128", [[0, 32]]):
        with pytest.raises(ConfigError, match="scales"):
            RatioSampler(Fake([1]), scales, 8)
    with pytest.raises(ConfigError, match="batch size"):
        BatchSampler(Fake([1]), 0)
    with pytest.raises(ConfigError, match="rank"):
        BatchSampler(Fake([1]), 4, rank=2, world_size=2)
