"""The rules that ship: one file per family, arithmetic and docstring, nothing else. An import line here registers."""

from fastgd.kernels.rule import Rule
from fastgd.kernels.rules.adabelief import AdaBelief
from fastgd.kernels.rules.adadelta import Adadelta
from fastgd.kernels.rules.adafactor import CAME, Adafactor
from fastgd.kernels.rules.adagrad import Adagrad
from fastgd.kernels.rules.adam import Adam, AdamW
from fastgd.kernels.rules.adamax import Adamax
from fastgd.kernels.rules.adan import Adan
from fastgd.kernels.rules.ademamix import AdEMAMix
from fastgd.kernels.rules.adopt import ADOPT
from fastgd.kernels.rules.asgd import ASGD
from fastgd.kernels.rules.grams import Grams
from fastgd.kernels.rules.lamb import LAMB
from fastgd.kernels.rules.lars import LARS
from fastgd.kernels.rules.lion import Lion
from fastgd.kernels.rules.mars import MARS
from fastgd.kernels.rules.muon import Muon
from fastgd.kernels.rules.nadam import NAdam
from fastgd.kernels.rules.novograd import NovoGrad
from fastgd.kernels.rules.prodigy import DAdaptAdam, Prodigy
from fastgd.kernels.rules.radam import RAdam
from fastgd.kernels.rules.rmsprop import RMSprop
from fastgd.kernels.rules.rprop import Rprop
from fastgd.kernels.rules.schedulefree import ScheduleFreeAdamW, ScheduleFreeSGD
from fastgd.kernels.rules.sgd import GD, SGD
from fastgd.kernels.rules.signum import Signum
from fastgd.kernels.rules.sophia import SophiaG
from fastgd.kernels.rules.stableadamw import StableAdamW
from fastgd.kernels.rules.yogi import Yogi

RULES: dict[str, type[Rule]] = {
    name.lower(): value
    for name, value in sorted(vars().items(), key=lambda item: item[0].lower())
    if isinstance(value, type) and issubclass(value, Rule) and value is not Rule
}
"""Every rule by its lower-case name."""
