"""What holds for any sizes, cuts and data."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import numbers, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import SETTINGS

import fastgd
from fastgd.kernels.blocks import HI, LO, SEGMENT, block_counts, equal_cuts, lane_sums, tiles, tree_sum
from fastgd.kernels.plan import plan
from fastgd.kernels.rules import RULES

ELEMENTWISE = [n for n in RULES if plan(RULES[n]()).combine is None and plan(RULES[n]()).matrix is None]
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
thorough = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sizes = st.lists(st.sampled_from([0, 1, 2, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 16385]), min_size=1, max_size=6)
cases = st.sampled_from([(name, values) for name in RULES for values in SETTINGS[name]])


def run(case, arrays, gradients, **how):
    name, values = case
    opt = fastgd.Optimizer(arrays, RULES[name](**values), **how)
    for g in gradients:
        opt.step(g)
    if how.get("threads") == 2 and sum(a.size for a in arrays) >= 1 << 14:
        assert getattr(opt._layout.program.launches[0].sweeps[0], "_parallel", True)  # a matrix rule's is none of ours
    return arrays


def check_backends(case, shapes, seed, dtype, special):
    rng = np.random.default_rng(seed)
    start = [numbers(rng, n, dtype, special) for n in shapes]
    gradients = [[numbers(rng, n, dtype, special) for n in shapes] for _ in range(3)]
    reference = run(case, [a.copy() for a in start], gradients, backend="numpy")
    for threads in (1, 2):
        other = run(case, [a.copy() for a in start], gradients, threads=threads)
        assert all(same_bits(a, b) for a, b in zip(reference, other, strict=True))


arguments = (cases, sizes, st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]), st.sampled_from([0, 0.01]))


@quick
@given(*arguments)
def test_backends_and_threads_agree(case, shapes, seed, dtype, special):
    check_backends(case, shapes, seed, dtype, special)


@pytest.mark.slow
@thorough
@given(*arguments)
def test_backends_and_threads_agree_thoroughly(case, shapes, seed, dtype, special):
    check_backends(case, shapes, seed, dtype, special)


@quick
@given(st.sampled_from(ELEMENTWISE), st.integers(1, 5000), st.data())
def test_splitting_an_array_changes_nothing(name, size, data):
    cut = data.draw(st.integers(0, size))
    rng = np.random.default_rng(size)
    start, g = numbers(rng, size, np.float32), numbers(rng, size, np.float32)
    case = (name, SETTINGS[name][0])
    whole = run(case, start.copy(), [g, -g])
    parts = run(case, [start[:cut].copy(), start[cut:].copy()], [[g[:cut], g[cut:]], [-g[:cut], -g[cut:]]])
    assert same_bits(whole, np.concatenate(parts))


@quick
@given(sizes, st.integers(1, 64))
def test_tiles_and_cuts_cover_everything_once(shapes, chunks):
    table = tiles(shapes, [0] * len(shapes))
    covered = [np.zeros(n, int) for n in shapes]
    for row in table:
        covered[row[SEGMENT]][row[LO] : row[HI]] += 1
    assert all((c == 1).all() for c in covered)
    cuts = equal_cuts(table, chunks)
    assert cuts[0] == 0
    assert cuts[-1] == len(table)
    assert (np.diff(cuts) > 0).all()
    assert len(cuts) <= chunks + 1


@quick
@given(st.integers(0, 100_000), st.integers(0, 2**32))
def test_sums_are_close_to_exact(size, seed):
    x = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    blocks = lane_sums(x * x)
    assert len(blocks) == block_counts([size])[-1]
    exact = np.sum(x.astype(np.float64) ** 2)
    assert tree_sum(blocks.astype(np.float64)[:, None])[0] == pytest.approx(exact, rel=1e-6)
