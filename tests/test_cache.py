"""The cache on disk: kernels that different processes compiled live side by side in a third."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RUN = """
import sys
import numpy as np, fastgd
from fastgd.kernels.rules import RULES
hits = 0
for name in sys.argv[2:]:
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal((2, int(sys.argv[1])), dtype=np.float32)
    q = p.copy()
    values = dict(lr=0.1, weight_decay=0.5) if name != "gd" else dict(lr=0.1)
    ours = fastgd.Optimizer(p, RULES[name](**values), threads=2)
    reference = fastgd.Optimizer(q, RULES[name](**values), backend="numpy")
    for _ in range(3):
        ours.step(g)
        reference.step(g)
    assert np.array_equal(p, q), name
    hits += sum(ours._launches[0].sweeps[0]._kernel.stats.cache_hits.values())
print(hits)
"""


def run(folder, size, *names):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(size), *names], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("size", [1000, 200_000], ids=["serial", "parallel"])
def test_kernels_of_other_processes_are_used_and_kept_apart(tmp_path, size):
    """Numba gives symbols numbers that start anew in each process; once, one kernel ran another's arithmetic."""
    names = ("adam", "sgd", "lamb")
    for name in names:
        assert run(tmp_path, size, name) == 0
    assert run(tmp_path, size, *names) == len(names)
