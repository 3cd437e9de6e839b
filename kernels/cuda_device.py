"""What a rule's update of one element takes from numba-cuda, for kernels of a user's own.

All else is shared with the CPU: `fastgd.kernels.cpu_device` prints the function, checks what it is called with and
makes the scalars of a step. Loaded when a kernel that calls it is compiled, so numba-cuda is loaded already.
"""

from __future__ import annotations

from typing import Any

from fastgd.kernels.errors import ADD_NUMBA_CUDA, BackendUnavailable


def library() -> Any:
    """Give the module of operations that are rounded by name.

    Raises
    ------
    BackendUnavailable
        If ``numba.cuda`` is Numba's own, which numba-cuda replaces.
    """
    from numba import cuda

    found = getattr(cuda, "implementation", "unnamed")
    if found != "NVIDIA":  # it is deprecated, and fails with the compilers of today
        raise BackendUnavailable(f"numba.cuda is not that of numba-cuda but {found!r}: {ADD_NUMBA_CUDA}")
    from numba.cuda import libdevice

    return libdevice
