"""The machine's own load while something is measured: the CPU time that other processes took.

A load average says what was waiting in the last minute, the measurement included. Here the time that all CPUs were busy
is read before and after, and what our own processes used is taken off. Time that a hypervisor gave to others counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

BUSY = 0.05
"""Share of all CPUs' time from which others disturb: one busy core of twenty, or a tenth of one of two."""

_LEAST = 1.0  # seconds: the kernel counts in hundredths, which say little about less
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # of /proc/stat: user, nice, system, irq, softirq, steal
_OWN_FIELDS = slice(11, 15)  # of /proc/PID/stat behind the name: utime, stime, and those of children that ended


@dataclass(frozen=True)
class Snapshot:
    """Seconds until now: of a clock, of CPUs that were busy, and of those that our processes used."""

    clock: float
    busy: float
    own: float


def snapshot(pids: Iterable[int], proc: Path = Path("/proc")) -> Snapshot | None:
    """Read what was used until now; None where the system does not tell."""
    tick = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    try:
        fields = (proc / "stat").read_text().split("\n", 1)[0].split()[1:]
        busy = sum(int(fields[k]) for k in _BUSY_FIELDS)
    except (OSError, ValueError, IndexError):
        return None
    own = 0
    for pid in pids:
        try:
            text = (proc / str(pid) / "stat").read_text()
        except OSError:  # it has ended, and its time is among that of our children
            continue
        own += sum(int(x) for x in text.rpartition(")")[2].split()[_OWN_FIELDS])
    return Snapshot(monotonic(), busy / tick, own / tick)


class Meter:
    """Adds up, over stretches of measurement, the CPU time that others took.

    Attributes
    ----------
    seconds
        Length of all stretches.
    others
        CPU time of other processes in them; None where the system does not tell.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.others: float | None = 0.0

    @contextmanager
    def running(self, pids: Iterable[int]) -> Iterator[None]:
        """Count a stretch; `pids` are those of our processes beside this one."""
        ours = (os.getpid(), *pids)
        before = snapshot(ours)
        yield
        self.add(before, snapshot(ours))

    def add(self, before: Snapshot | None, after: Snapshot | None) -> None:
        """Count what lies between two snapshots."""
        if before is None or after is None or self.others is None:
            self.others = None
            return
        self.seconds += after.clock - before.clock
        self.others += max(0.0, (after.busy - before.busy) - (after.own - before.own))

    def include(self, part: Meter) -> None:
        """Count the stretches of another meter too."""
        self.seconds += part.seconds
        self.others = None if self.others is None or part.others is None else self.others + part.others

    def cpus(self) -> float | None:
        """CPUs that others kept busy on average; None where that is not known or too little was measured."""
        return None if self.others is None or self.seconds < _LEAST else round(self.others / self.seconds, 3)


def warning(others: float | None, cpus: int) -> str | None:
    """Say that the machine was busy, if it was: `others` CPUs of so many on average."""
    if others is None or others <= BUSY * cpus:
        return None
    return (
        f"the machine was busy: other processes kept {others:.2f} of {cpus} CPUs occupied while it was measured; "
        "times are too long and spread too far, ratios within one case less so"
    )
