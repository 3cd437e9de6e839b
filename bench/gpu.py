"""Everything that a GPU can say of the cupy backend, in one call from a bare checkout: ``python bench/gpu.py``.

Bits are compared with NumPy's, the tests that need a device and compute-sanitizer are run, bandwidth and launch cost
are measured beside torch's optimizers, and JSON and Markdown are written. It runs on whatever versions are there.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 450.0
"""Seconds, at the end of which nothing is begun any more."""

GRACE = 30.0
"""Seconds for what runs then; a device that hangs is left behind, with the report as it was before."""


def main(arguments: Sequence[str] | None = None, scale: Any = None) -> int:
    """Run everything that a GPU can say of the cupy backend.

    Parameters
    ----------
    arguments
        Of the command line; by default the process's.
    scale : fastgd.bench.gpu_run.Scale, optional
        How much is done; by default what the command line says.

    Returns
    -------
    int
        Exit status: 0; 1 for a wrong bit and whatever else failed, and with ``--require-gpu`` for what was left out; 2
        where there is no GPU.
    """
    # not above: a script must find the checkout's fastgd first
    from fastgd.bench.gpu_parts import full, parts
    from fastgd.bench.gpu_report import markdown
    from fastgd.bench.gpu_run import Run, refusal

    parser = argparse.ArgumentParser(prog="python bench/gpu.py", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rules, fewer rounds, no huge arrays")
    parser.add_argument("--require-gpu", action="store_true", help="fail where anything was left out")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results", help="folder of gpu.json and gpu.md")
    parser.add_argument("--seconds", type=float, default=DEADLINE, help="in all (default: %(default)s)")
    given = parser.parse_args(arguments)
    if why := refusal():
        print(f"bench/gpu.py measures on an NVIDIA GPU: {why}", file=sys.stderr)
        return 2
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # of children
    faulthandler.dump_traceback_later(given.seconds + GRACE, exit=True)
    try:
        run = Run(scale or full(quick=given.quick), given.seconds, given.output)
        for name, part in parts(run.scale):
            run.do(name, part)
    finally:
        faulthandler.cancel_dump_traceback_later()
    run.write()
    print(markdown(run.report))
    status = run.status(whole=given.require_gpu)
    print(f"written to {given.output}; {'FAILED' if status else 'all that was checked is right'}")
    return status


if __name__ == "__main__":
    # in front stands the folder of a script, where fastgd is not, and whose modules belong to fastgd.bench
    if sys.path[0] == str(Path(__file__).parent):
        sys.path[0] = str(ROOT)
    raise SystemExit(main())
