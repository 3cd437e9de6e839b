"""Files of machine code: in a folder that nobody else may write, read only where they are ours, written whole.

What lies there is run, so a folder or a file that another user could have written is not used. Whether a file is sound
is for those to tell who know what is in it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def status() -> tuple[Path | None, str]:
    """Find the folder of compiled kernels and make it where it is missing.

    ``FASTGD_CACHE=0`` switches the cache off, ``FASTGD_CACHE=folder`` names it. Otherwise it is ``fastgd`` in
    ``NUMBA_CACHE_DIR``, in ``XDG_CACHE_HOME`` or ``~/.cache``, or one of the user's in the folder for temporary files:
    the first that can be used.

    Returns
    -------
    folder : Path or None
        None where kernels are compiled anew in each process.
    reason : str
        Why that is so; else empty.
    """
    asked = os.environ.get("FASTGD_CACHE")
    if asked == "0":
        return None, "FASTGD_CACHE=0 switches it off"
    reasons = []
    for folder in [Path(asked).expanduser().absolute()] if asked else _usual():
        reason = _refusal(folder)
        if not reason:
            return folder, ""
        reasons.append(f"{folder} {reason}")
    return None, "; ".join(reasons)


def read(path: Path) -> bytes | None:
    """Give the content of a file; None where there is none, or none that only this user could have written."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                return None  # somebody else has put it, or another folder, there
            return file.read()
    except OSError:
        return None


def write(path: Path, content: bytes) -> None:
    """Put a file in its place at once: another process sees all of it or what was there before.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def discard(path: Path) -> None:
    """Delete a file that cannot be used, where that is possible."""
    with contextlib.suppress(OSError):
        path.unlink()


def _usual() -> list[Path]:
    numbas = os.environ.get("NUMBA_CACHE_DIR")
    folders = [Path(numbas).absolute() / "fastgd"] if numbas else []
    with contextlib.suppress(RuntimeError):  # no home
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folders.append(Path(home).absolute() / "fastgd")
    return [*folders, Path(tempfile.gettempdir()) / f"fastgd-{os.geteuid()}"]


def _refusal(folder: Path) -> str:
    """Why code must not be taken from a folder; empty where it may. What lies there is run."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found, above = folder.lstat(), folder.parent.stat()
    except OSError as error:
        return f"cannot be made: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder but a link"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, not to {os.geteuid()}"
    if found.st_mode & 0o022:
        return f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    if above.st_mode & 0o002 and not above.st_mode & stat.S_ISVTX:
        return "lies in a folder in which anybody may replace it"
    return ""
