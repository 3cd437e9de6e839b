"""Every error fastgd raises on purpose; each derives also from the builtin a caller would catch."""

ADD_CUPY = 'pip install "fastgd[cupy13]", or "fastgd[cupy12]" where the driver is one of CUDA 12'
"""What adds CuPy and the compiler of its kernels, for errors to name."""

ADD_NUMBA_CUDA = 'pip install "fastgd[cuda13]", or "fastgd[cuda12]" where the driver is one of CUDA 12'
"""What adds numba-cuda, likewise."""


class FastGDError(Exception):
    """Base of all fastgd errors."""


class ArrayError(FastGDError, ValueError):
    """An array has the wrong shape, dtype, layout or owner."""


class HyperparameterError(FastGDError, ValueError):
    """A hyperparameter is missing, of the wrong type or outside its range."""


class RuleError(FastGDError, SyntaxError):
    """A rule uses something the rule language does not have; names file, line and expression."""


class BackendUnavailable(FastGDError, RuntimeError):
    """A backend was asked for by name and cannot serve; says why and what adds it."""


class NonFiniteError(FastGDError, ArithmeticError):
    """A gradient holds NaN or infinity and the optimizer was told to raise."""


class CheckpointError(FastGDError, ValueError):
    """A state or checkpoint does not fit the optimizer it is loaded into."""
