"""The `fastgd` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command.

    Exit code 0; 1 for a fastgd error, and where the reader of a pipe has gone; 2 for wrong arguments or a missing
    extra; 130 for Ctrl-C.
    """
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        _end(f'the fastgd command needs {error.name}: pip install "fastgd[cli]"', 2)
    from fastgd.cli.app import command
    from fastgd.kernels.errors import FastGDError

    try:
        code = command().main(prog_name="fastgd", standalone_mode=False)
        sys.stdout.flush()  # now: at the end of the interpreter nobody could catch what it raises
    except BrokenPipeError:  # as of `fastgd ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        sys.exit(1)
    except FastGDError as error:
        _end(str(error), 1)
    except ImportError as error:  # an extra that a command needs; says how to add it
        _end(str(error), 2)
    except OSError as error:  # a file that cannot be written
        _end(str(error), 1)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except Exception as error:
        message = getattr(error, "format_message", None)  # typer's and click's own
        if message is None:
            if type(error).__name__ == "Abort":
                _end("interrupted", 130)
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message())
            sys.exit(0)
        _end(f"{message()} (see fastgd --help)", 2)
    if code == 130:  # typer's answer to Ctrl-C, without a word
        _end("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> None:
    print(f"fastgd: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
