"""Runs kernels that g++ built with its sanitizers; a process of its own, as their runtime must be loaded first."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "cuda")]

import fake_cupy  # noqa: E402
import gxx  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import test_cuda_kernels as kernels  # noqa: E402

asked = sys.argv[1] if len(sys.argv) > 1 else None
planted = asked if asked in ("bounds", "alignment") else None
CASES = ("adamw",) if planted else kernels.EVERY_RULE if asked else kernels.CASES
FAULTS = {
    "bounds": ("i < tile.hi; i += N * FGD_THREADS", "i <= tile.hi; i += N * FGD_THREADS"),
    "alignment": ("reinterpret_cast<const Pack *>(array[a] + i)", "reinterpret_cast<const Pack *>(array[a] + i + 1)"),
}
build = gxx.build


def built(text, *flags):
    if planted and "fgd_Rule" in text:
        assert FAULTS[planted][0] in text
        text = text.replace(*FAULTS[planted])
    return build(text, *flags)


fake_cupy.SANITIZED = gxx.SANITIZERS
RUNS = [
    (case, dtype, shift)
    for case in CASES
    for dtype in (np.float32, np.float64)[: 1 if CASES is kernels.EVERY_RULE else 2]
    for shift in (0, 1)
]
with pytest.MonkeyPatch.context() as patched, fake_cupy.installed(patched) as cupy:
    texts = fake_cupy.asked_for(patched)
    for case, dtype, shift in RUNS:
        kernels.run(case, dtype, "cupy", shift, cupy)
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(lambda text: built(text, gxx.SANITIZERS), texts))
gxx.build = built
for case, dtype, shift in RUNS:
    with pytest.MonkeyPatch.context() as patched, fake_cupy.installed(patched) as cupy:
        found = kernels.run(case, dtype, "cupy", shift, cupy)
    kernels.assert_same(kernels.run(case, dtype, "numpy", shift), found)
print("all kernels kept to their arrays")
