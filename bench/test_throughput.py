"""Speed of whole steps at small sizes, to compare revisions: ``pytest bench --benchmark-enable``."""

from typing import Any

import pytest

from fastgd.bench.cases import CASES, data
from fastgd.kernels.rules import RULES
from fastgd.optimizer import Optimizer


@pytest.mark.parametrize("n", [4096, 1 << 17])
@pytest.mark.parametrize("rule", RULES)
def test_step(benchmark: Any, rule: str, n: int) -> None:
    p, g = data(n, "float32")
    optimizer = Optimizer(p, CASES[rule].build(), backend="numba")
    optimizer.step(g)  # compiles
    benchmark.extra_info["bytes"] = n * optimizer.bytes_per_param
    benchmark(optimizer.step, g)
    assert optimizer.t > 1
