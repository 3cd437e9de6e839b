"""The commands `fastgd kernels list` and `fastgd kernels show`: the rules, and what each of them becomes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastgd.cli.output import show_code, show_table

if TYPE_CHECKING:
    from fastgd.kernels.plan import Plan
    from fastgd.kernels.printers import DType
    from fastgd.kernels.rule import Rule

_LANGUAGES = {  # Pygments' names
    "rule": "python",
    "numpy": "python",
    "numba": "python",
    "llvm": "llvm",
    "asm": "gas",
    "cuda": "cuda",
    "ptx": "ptx",
    "sass": "gas",
}
_COMPILED = ("llvm", "asm")
_ON_GPU = ("cuda", "ptx", "sass")
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

commands = typer.Typer(no_args_is_help=True, help="List the update rules and show what each is compiled to.")


@commands.command("list")
def list_rules(
    as_json: Annotated[bool, typer.Option("--json", help="Data, with the hyperparameters' defaults.")] = False,
) -> None:
    """List the rules: states, bytes that a step moves for each float32 parameter, alone and with the tail, options."""
    from fastgd.kernels.plan import describe
    from fastgd.kernels.rules import RULES
    from fastgd.state import plain

    rows = {name: describe(cls()) for name, cls in RULES.items()}
    if as_json:
        data = [{"name": name, **row, "hyperparameters": plain(RULES[name]())} for name, row in rows.items()]
        print(json.dumps(data, indent=2))
        return
    tails = tuple(next(iter(rows.values()))["tails"])
    table = [
        (
            name,
            ", ".join(row["states"]) or "-",
            row["moved"],
            *(str(row["tails"][tail]) for tail in tails),
            ", ".join(row["options"]) or "-",
        )
        for name, row in rows.items()
    ]
    with_tails = [f"+{tail}" if tail != "all" else "with all" for tail in tails]
    show_table(("rule", "states", "bytes/param", *with_tails, "options"), table, numbers=("bytes/param", *with_tails))


@commands.command("show")
def show_rule(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="Name of a rule, as `fastgd kernels list` gives it.")],
    target: Annotated[str, typer.Option(help=f"One of {', '.join(_LANGUAGES)}.")] = "rule",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    option: Annotated[
        list[str] | None,
        typer.Option(help="A hyperparameter, as in amsgrad=true or betas=0.9,0.99; may be given again."),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="With the average of the parameters in the tail.")] = False,
    lookahead: Annotated[bool, typer.Option("--lookahead", help="With that, and the parameters set to it.")] = False,
    max_value: Annotated[bool, typer.Option("--max-value", help="With the clip of each element.")] = False,
    zero_grad: Annotated[bool, typer.Option("--zero-grad", help="With g = 0 in the tail.")] = False,
    parallel: Annotated[bool, typer.Option("--parallel", help="The kernel for threads; of llvm and asm.")] = False,
    backend: Annotated[
        str | None, typer.Option(help="Whose kernel, of cuda, ptx and sass: cupy (the default) or numba-cuda.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="Architecture of ptx and sass, by default sm_90; cuda is the same for all.")
    ] = None,
) -> None:
    """Show a rule as written, as printed for a target, or as compiled for this machine."""
    from fastgd.kernels.errors import BackendUnavailable, FastGDError
    from fastgd.kernels.plan import plan
    from fastgd.kernels.rules import RULES
    from fastgd.kernels.tail import Tail

    name = rule.lower()
    _known("RULE", name, RULES)
    _known("--target", target, _LANGUAGES)
    _known("--dtype", dtype, ("float32", "float64"))
    tail = Tail("lookahead" if lookahead else "ema" if ema else "", max_value, zero_grad)
    if parallel:
        _goes_with("--parallel", _COMPILED, target)
    if backend is not None:
        _goes_with("--backend", _ON_GPU, target)
        _known("--backend", backend, ("cupy", "numba-cuda"))
    if arch is not None:
        _goes_with("--arch", _ON_GPU, target)
        if not re.fullmatch("sm_[0-9]+", arch):
            raise typer.BadParameter(f"--arch must be sm_ and a number, such as sm_90, given {arch!r}")
    try:
        chosen = RULES[name](**_settings(RULES[name], option or []))
        planned = plan(chosen, tail)
    except FastGDError as error:
        raise typer.BadParameter(str(error)) from None
    if planned.matrix is not None and target != "rule":
        raise typer.BadParameter(
            f"{rule} is a rule of whole matrices, which the operators of the arrays' library compute and no kernel of "
            f"fastgd: --target must be rule, given {target}"
        )
    if target == "rule" and (option or tail != Tail()):
        print("fastgd: this is the rule as written; --target numpy has options and tail folded in", file=sys.stderr)
    in_python = backend == "numba-cuda" and target == "cuda"
    comment = "#" if in_python else "//"
    texts: dict[str, Callable[[], str]] = {
        "rule": lambda: _written(chosen),
        "numpy": lambda: _numpy(planned, dtype),  # type: ignore[arg-type]  # checked above
        "numba": lambda: _numba(planned, dtype),  # type: ignore[arg-type]  # checked above
        "llvm": lambda: _linked([*_compiled(planned, dtype, name, parallel, "inspect_llvm").values()]),
        "asm": lambda: _headed(_compiled(planned, dtype, name, parallel, "inspect_asm"), "#"),
        "cuda": lambda: _headed(_on_gpu(planned, dtype, name, backend), comment),
        "ptx": lambda: _headed(_on_gpu(planned, dtype, name, backend, "ptx", arch), "//"),
        "sass": lambda: _headed(_on_gpu(planned, dtype, name, backend, "sass", arch), "//"),
    }
    try:
        text = texts[target]()
    except BackendUnavailable as error:  # no compiler, or none for that architecture
        raise typer.BadParameter(f"--target {target}: {error}") from None
    show_code(text, "python" if in_python else _LANGUAGES[target])


# ---- what was asked for ------------------------------------------------------------------------------------------


def _known(what: str, given: str, known: Iterable[str]) -> None:
    names = list(known)
    if given not in names:
        close = get_close_matches(given, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise typer.BadParameter(f"{what} must be one of {', '.join(names)}, given {given!r}{hint}")


def _goes_with(option: str, targets: Sequence[str], target: str) -> None:
    if target not in targets:
        *others, last = targets
        raise typer.BadParameter(f"{option} goes with --target {', '.join(others)} or {last}, given --target {target}")


def _settable(rule_class: type[Rule]) -> dict[str, str]:
    """Hyperparameters of a rule and their declared types, as text."""
    declared: dict[str, Any] = getattr(rule_class, "__dataclass_fields__")  # noqa: B009  # Rule itself is no dataclass
    return {name: str(declared[name].type) for name in rule_class.hyperparameters()}


def _settings(rule_class: type[Rule], options: Iterable[str]) -> dict[str, object]:
    """Hyperparameters out of ``name=value``."""
    declared = _settable(rule_class)
    settings = {}
    for text in options:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise typer.BadParameter(f"--option must be name=value such as lr=0.1, given {text!r}")
        _known(f"--option of {rule_class.__name__}", name, declared)
        settings[name] = _value(name, declared[name], value)
    return settings


def _value(name: str, declared: str, text: str) -> object:
    if "None" in declared and text.lower() == "none":
        return None
    if declared.startswith("bool"):
        if text.lower() not in _TRUTHS:
            raise typer.BadParameter(f"--option {name} must be true or false, given {text!r}")
        return _TRUTHS[text.lower()]
    if declared.startswith("str"):
        return text
    if declared.startswith("Rule"):
        raise typer.BadParameter(
            f"--option {name} must be none: another rule can be given in Python only, given {text!r}"
        )
    try:
        if declared.startswith("tuple"):
            return tuple(float(part) for part in text.strip("()[] ").split(","))
        return float(text)
    except ValueError:
        wanted = "numbers such as 0.9,0.99" if declared.startswith("tuple") else "a number"
        raise typer.BadParameter(f"--option {name} must be {wanted}, given {text!r}") from None


# ---- what a rule becomes -----------------------------------------------------------------------------------------


def _written(rule: Rule) -> str:
    import inspect
    from textwrap import dedent

    of_two_sweeps = [name for name in ("derive", "measure", "combine", "update") if hasattr(rule, name)]
    names = of_two_sweeps if "measure" in rule.stages() else rule.stages()
    return "\n".join(dedent(inspect.getsource(getattr(rule, name))) for name in names)


def _numpy(planned: Plan, dtype: DType) -> str:
    from fastgd.kernels.printers import numpy_text

    return "\n\n".join(numpy_text(f, f.name, dtype if f in planned.sweeps else "float64") for f in planned.functions)


def _numba(planned: Plan, dtype: DType) -> str:
    from fastgd.kernels.between_code import codes_between
    from fastgd.kernels.cpu import tile_text
    from fastgd.kernels.cpu_between import between_text
    from fastgd.kernels.printers import scalar_text

    between = codes_between(planned, dtype)
    return "\n\n".join(
        f"# between the sweeps: {f.name}\n{between_text(between[f.name])}"
        if f.name in between
        else f"# sweep {f.name}\n{scalar_text(f, '_rule', dtype)}\n\n{tile_text(f)}"
        for f in planned.functions
    )


def _on_gpu(
    planned: Plan, dtype: str, label: str, backend: str | None, form: str = "text", arch: str | None = None
) -> dict[str, str]:
    """Kernels for a GPU by name, in one form: ``text``, ``ptx`` or ``sass``."""
    number = (arch or "sm_90").removeprefix("sm_")
    made: dict[str, Any] = (
        _of_numba(planned, dtype, label) if backend == "numba-cuda" else _of_cupy(planned, dtype, label)
    )
    return {name: forms[form](number) for name, forms in made.items()}


def _of_cupy(planned: Plan, dtype: str, label: str) -> dict[str, dict[str, Callable[[str], str]]]:
    from fastgd.kernels import cubin
    from fastgd.kernels.cuda_source import sources

    def forms(name: str, text: str) -> dict[str, Callable[[str], str]]:
        title = f"{label}_{name}"
        return {
            "text": lambda arch: text,
            "ptx": lambda arch: cubin.ptx(text, arch, title),
            "sass": lambda arch: cubin.sass(cubin.cubin(text, arch, title)),
        }

    return {name: forms(name, text) for name, text in sources(planned, dtype, label).items()}  # type: ignore[arg-type]


def _of_numba(planned: Plan, dtype: str, label: str) -> dict[str, dict[str, Callable[[str], str]]]:
    from fastgd.kernels import cubin, cuda_numba_source

    def forms(kernel: cuda_numba_source.Kernel) -> dict[str, Callable[[str], str]]:
        return {
            "text": lambda arch: kernel.text,
            "ptx": lambda arch: cuda_numba_source.ptx(kernel, arch),
            "sass": lambda arch: cubin.sass(cuda_numba_source.machine_code(kernel, arch)),
        }

    kernels = cuda_numba_source.kernels(planned, dtype, label)  # type: ignore[arg-type]  # checked above
    return {kernel.name: forms(kernel) for kernel in kernels}


def _compiled(planned: Plan, dtype: str, label: str, parallel: bool, inspect: str) -> dict[str, str]:
    """Text of each sweep's kernel, by name, compiled anew: what comes from a cache cannot be inspected."""
    import numpy as np

    from fastgd.kernels.cpu import dispatcher

    texts = {}
    for sweep in planned.sweeps:
        made = dispatcher(sweep, np.dtype(dtype), label, parallel=parallel)
        texts[sweep.name] = getattr(made, inspect)(made.signatures[0])
    return texts


def _linked(modules: list[str]) -> str:
    """One module of all the kernels: two of them, one behind the other, are none that a tool would read."""
    if len(modules) == 1:
        return modules[0]
    from llvmlite import binding

    first, *others = (binding.parse_assembly(text) for text in modules)
    for other in others:
        first.link_in(other)
    return str(first)


def _headed(texts: Mapping[str, str], comment: str) -> str:
    """Texts of functions, each under its name where there are several; one alone can be fed to a tool."""
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "\n".join(f"{comment} {name}\n{text}" for name, text in texts.items())
