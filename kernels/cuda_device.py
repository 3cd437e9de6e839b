"""What fastgd takes from numba-cuda as a compiler: for the kernels of a user's own, and for its own.

All else that a rule's update of one element needs is shared with the CPU: `fastgd.kernels.cpu_device` prints the
function, checks what it is called with and makes the scalars of a step.
"""

from __future__ import annotations

from typing import Any

from fastgd.kernels.errors import ADD_NUMBA_CUDA, BackendUnavailable


def numba_cuda() -> Any:
    """Give the module ``numba.cuda`` that numba-cuda brings.

    Raises
    ------
    BackendUnavailable
        If it is Numba's own, which numba-cuda replaces.
    """
    from numba import cuda

    found = getattr(cuda, "implementation", "unnamed")
    if found != "NVIDIA":  # it is deprecated, and fails with the compilers of today
        raise BackendUnavailable(f"numba.cuda is not that of numba-cuda but {found!r}: {ADD_NUMBA_CUDA}")
    return cuda


def library() -> Any:
    """Give the module of operations that are rounded by name; see `numba_cuda`."""
    numba_cuda()
    from numba.cuda import libdevice

    return libdevice
