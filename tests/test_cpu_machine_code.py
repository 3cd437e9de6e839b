"""The machine code of the CPU kernels: the loop over elements is made of vectors, and asks nothing beforehand."""

import re

import numpy as np
import pytest

from fastgd.kernels.cpu import dispatcher
from fastgd.kernels.plan import plan
from fastgd.kernels.rules import RULES
from fastgd.kernels.tail import Tail

A_FEW = ("adamw", "lamb", "novograd")
TYPES = {"float32": "float", "float64": "double"}
ELEMENTWISE = [name for name, rule in RULES.items() if plan(rule()).matrix is None]


def loops(sweep, dtype, rule):
    """LLVM's text of the function that has the loop over elements: of the tile, or of the kernel that took it in."""
    made = dispatcher(sweep, np.dtype(dtype), rule, parallel=False)
    (text,) = made.inspect_llvm().values()
    functions = text.split("\ndefine ")[1:]
    tiles = [f for f in functions if re.search(r"@\S*_tile\w*\(", f.split("\n", 1)[0])]
    return "".join(tiles or functions)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rule", [r if r in A_FEW else pytest.param(r, marks=pytest.mark.slow) for r in ELEMENTWISE])
def test_elements_are_taken_in_vectors_and_no_overlap_is_looked_for(rule, dtype):
    for made in (plan(RULES[rule]()), plan(RULES[rule](), Tail("ema", zero_grad=True))):
        for sweep in made.sweeps:
            text = loops(sweep, dtype, rule)
            assert "memcheck" not in text, sweep.name
            vectors = re.findall(rf"(load|store) <\d+ x {TYPES[dtype]}>.*!alias\.scope", text)
            assert vectors.count("load") >= len(sweep.reads), sweep.name
            assert vectors.count("store") >= len(sweep.writes), sweep.name
