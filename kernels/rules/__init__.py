"""The rules that ship: one file per family, arithmetic and docstring, nothing else. An import line here registers."""

from fastgd.kernels.rule import Rule
from fastgd.kernels.rules.adam import Adam, AdamW
from fastgd.kernels.rules.lamb import LAMB
from fastgd.kernels.rules.lion import Lion
from fastgd.kernels.rules.sgd import GD, SGD

RULES: dict[str, type[Rule]] = {
    name.lower(): value
    for name, value in sorted(vars().items())
    if isinstance(value, type) and issubclass(value, Rule) and value is not Rule
}
"""Every rule by its lower-case name."""
