"""How work is cut: tiles for the sweeps, blocks and lanes for the sums. The same on every backend.

A sum has one fixed shape. Blocks of `SUM_BLOCK` elements are counted from a segment's start. In a block, `LANES`
interleaved lanes are added in order, then to each other by a binary tree; the block sums are added in float64 by a
pairwise tree in which an odd last one is carried up; so are the segments. No number of threads changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.language import Sweep
from fastgd.kernels.squares import join, parts_of

TILE = 16384
SUM_BLOCK = 4096
LANES = 256

LO, HI, ROW, SEGMENT, FIRST = range(5)
"""Columns of a table: elements from LO up to HI of SEGMENT, row of scalars, index of the first block sum."""


@dataclass(frozen=True)
class Where:
    """Where each segment lies in the arrays of one quantity: the array's number, and the first element in it."""

    array: NDArray[np.int64]
    offset: NDArray[np.int64]


def tiles(sizes: Sequence[int], rows: Sequence[int], tile: int = TILE) -> NDArray[np.int64]:
    """Table of tiles of all segments, given each one's size and its row of scalars."""
    table = []
    first = 0
    for segment, (size, row) in enumerate(zip(sizes, rows, strict=True)):
        for lo in range(0, size, tile):
            hi = min(size, lo + tile)
            table.append((lo, hi, row, segment, first))
            first += -(-(hi - lo) // SUM_BLOCK)
    return np.array(table, np.int64).reshape(-1, 5)


def block_counts(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Count the sum blocks before each segment, and of all."""
    return np.cumsum([0, *(-(-size // SUM_BLOCK) for size in sizes)], dtype=np.int64)


def branches(spans: Sequence[tuple[int, int]], most: int) -> Iterator[NDArray[np.int64]]:
    """Cut spans of numbers into parts of at most `most`, until each span is one; the sums of parts are the next ones.

    Where `most` is a power of two, the pairwise tree over the parts' sums is that over all numbers.
    """
    while True:
        cut = [[(a, min(hi, a + most)) for a in range(lo, hi, most)] or [(lo, hi)] for lo, hi in spans]
        yield np.array([part for parts in cut for part in parts], np.int64).reshape(-1, 2)
        if all(len(parts) == 1 for parts in cut):
            return
        ends = np.cumsum([0, *map(len, cut)]).tolist()
        spans = list(pairwise(ends))


def equal_cuts(table: NDArray[np.int64], chunks: int) -> NDArray[np.int64]:
    """Rows of a table at which it falls into chunks of about equal work."""
    work = np.cumsum(table[:, HI] - table[:, LO])
    wanted = work[-1] * np.arange(1, chunks) // chunks if len(work) else []
    inner = np.searchsorted(work, wanted, side="right")
    return np.unique(np.concatenate([[0], inner, [len(table)]])).astype(np.int64)


def tree_sum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the first axis by the pairwise tree; zero for none."""
    if not len(values):
        return np.zeros(values.shape[1:])
    while len(values) > 1:
        paired = values[: len(values) // 2 * 2]
        values = np.concatenate([paired[0::2] + paired[1::2], values[len(paired) :]])
    summed: NDArray[np.float64] = values[0]
    return summed


def lane_sums(terms: NDArray[np.floating]) -> NDArray[np.floating]:
    """Block sums of the terms of one segment, in their own dtype."""
    blocks = -(-terms.size // SUM_BLOCK)
    padded = np.zeros(blocks * SUM_BLOCK, terms.dtype)
    padded[: terms.size] = terms
    steps = padded.reshape(blocks, SUM_BLOCK // LANES, LANES)
    lanes = np.zeros((blocks, LANES), terms.dtype)
    for k in range(SUM_BLOCK // LANES):  # in order: what NumPy's own reductions do is not fixed
        lanes += steps[:, k]
    width = LANES // 2
    while width:
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
        width //= 2
    sums: NDArray[np.floating] = lanes[:, 0]
    return sums


def sums_of_terms(sweep: Sweep, sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Give what a sweep summed, in the last axis, by term; the two parts of a sum of squares are joined."""
    columns = dict(zip(sweep.sums, np.moveaxis(sums, -1, 0), strict=True))
    with np.errstate(all="ignore"):
        return {
            term: join(*(columns[part] for part in parts_of(term))) if term in sweep.squares else columns[term]
            for term in sweep.terms
        }
