# Made by docs/generate.py from the registry of rules; do not edit.
# ruff: noqa: TID251  # names for the type checker; nothing is loaded
"""Optimizer update rules at the speed of memory."""

from fastgd import backend as backend
from fastgd import bench as bench
from fastgd import callbacks as callbacks
from fastgd import flat as flat
from fastgd import functional as functional
from fastgd import health as health
from fastgd import kernels as kernels
from fastgd import nn as nn
from fastgd import optimizer as optimizer
from fastgd import optimizers as optimizers
from fastgd import schedules as schedules
from fastgd.backend import backends as backends
from fastgd.callbacks import EarlyStopping as EarlyStopping
from fastgd.callbacks import History as History
from fastgd.callbacks import ProgressBar as ProgressBar
from fastgd.callbacks import ReduceOnPlateau as ReduceOnPlateau
from fastgd.fit import fit as fit
from fastgd.flat import FlatParams as FlatParams
from fastgd.kernels.errors import ArrayError as ArrayError
from fastgd.kernels.errors import BackendUnavailable as BackendUnavailable
from fastgd.kernels.errors import CheckpointError as CheckpointError
from fastgd.kernels.errors import FastGDError as FastGDError
from fastgd.kernels.errors import HyperparameterError as HyperparameterError
from fastgd.kernels.errors import NonFiniteError as NonFiniteError
from fastgd.kernels.errors import RuleError as RuleError
from fastgd.loss_scaler import LossScaler as LossScaler
from fastgd.minimize import OptimizeResult as OptimizeResult
from fastgd.minimize import minimize as minimize
from fastgd.optimizer import Optimizer as Optimizer
from fastgd.optimizers import ADOPT as ADOPT
from fastgd.optimizers import ASGD as ASGD
from fastgd.optimizers import GD as GD
from fastgd.optimizers import LAMB as LAMB
from fastgd.optimizers import SGD as SGD
from fastgd.optimizers import AdaBelief as AdaBelief
from fastgd.optimizers import Adadelta as Adadelta
from fastgd.optimizers import Adagrad as Adagrad
from fastgd.optimizers import Adam as Adam
from fastgd.optimizers import Adamax as Adamax
from fastgd.optimizers import AdamW as AdamW
from fastgd.optimizers import Adan as Adan
from fastgd.optimizers import AdEMAMix as AdEMAMix
from fastgd.optimizers import Grams as Grams
from fastgd.optimizers import Lion as Lion
from fastgd.optimizers import NAdam as NAdam
from fastgd.optimizers import RAdam as RAdam
from fastgd.optimizers import RMSprop as RMSprop
from fastgd.optimizers import Rprop as Rprop
from fastgd.optimizers import ScheduleFreeAdamW as ScheduleFreeAdamW
from fastgd.optimizers import ScheduleFreeSGD as ScheduleFreeSGD
from fastgd.optimizers import Signum as Signum
from fastgd.optimizers import SophiaG as SophiaG
from fastgd.optimizers import Yogi as Yogi
from fastgd.presets import presets as presets

__version__: str
