"""Cold start: from the start of a process to the end of its first step, imports included, with whatever is cached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from fastgd.bench.cases import Case, data, max_ulp, reference
from fastgd.bench.worker import environment

COLD = "cold"
"""The regime of these measurements."""


def first_step(peer: str, case: Case, n: int, dtype: str, threads: int) -> dict[str, Any]:
    """Start a process that takes one step.

    Returns
    -------
    dict
        ``seconds`` and ``max_ulp``, or ``skipped``: why there are none.
    """
    with TemporaryDirectory() as folder:
        for name, values in zip("pg", data(n, dtype), strict=True):
            np.save(f"{folder}/{name}.npy", values)
        command = [sys.executable, "-m", "fastgd.bench.cold_step", peer, type(case.build()).__name__, folder]
        x64 = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(dtype == "float64"))}
        start = perf_counter()
        process = subprocess.Popen(
            [*command, str(threads), json.dumps(case.full())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment(threads) | x64,
        )
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        seconds = perf_counter() - start
        _, errors = process.communicate()
        if said != "stepped":
            last = ["", *errors.strip().splitlines()][-1]
            return {"skipped": said or f"its process ended with status {process.returncode}: {last}"}
        (expected,) = reference(case, dtype, n, factors=(1.0,))
        return {"seconds": seconds, "max_ulp": max_ulp(np.load(Path(folder, "result.npy")), expected)}
