"""Write anew all that follows from other files: ``python docs/generate.py``; ``--check`` names what is stale.

From the registry follow the README's table of rules and the type stubs ``fastgd/*.pyi``, without which a type checker
would accept any name and any argument: the named optimizers and functions are made at run time, and the package
resolves its names when they are asked for. From the reports in ``bench/results`` follow the README's table of speed and
its picture.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import fields
from inspect import Parameter, cleandoc, signature
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import fastgd
from fastgd import functional, optimizers
from fastgd.bench import headline
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.plan import Plan, describe, plan
from fastgd.kernels.rule import Rule
from fastgd.kernels.rules import RULES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
MADE = "# Made by docs/generate.py from the registry of rules; do not edit.\n"

OPTIMIZERS = '''"""The named optimizers."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar

from fastgd.kernels.rule import Rule
from fastgd.optimizer import Optimizer

_T = TypeVar("_T")
_OrSchedule: TypeAlias = _T | Callable[[int], _T]  # called with the number of steps taken
'''
FUNCTIONAL = '''"""A step in one call and without an object, one function for each rule."""

from typing import Any, Literal, SupportsIndex, overload

from fastgd.kernels.rule import Rule
'''


def rules_table() -> str:
    """Give a row for each rule at its defaults."""
    lines = ["| rule | states | bytes per float32 parameter | static options |", "|---|---|---|---|"]
    for cls in RULES.values():
        d = describe(cls())
        states, options = (", ".join(f"`{x}`" for x in d[k]) or "none" for k in ("states", "options"))
        lines.append(f"| `{d['rule']}` | {states} | {d['moved']} | {options} |")
    return "\n".join(lines) + "\n"


def reports() -> dict[str, dict[str, Any]]:
    """Read the reports of times, by the names of their files."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    return {name: report for name, report in found.items() if "rows" in report}


def readme(text: str) -> str:
    """Put the tables between their marks."""
    for name, table in (("rules", rules_table()), ("speed", f"\n{headline.markdown(reports())}\n")):
        begin, end = f"<!-- {name}: begin, made by docs/generate.py -->\n", f"<!-- {name}: end -->\n"
        head, rest = text.split(begin)
        text = head + begin + table + end + rest.split(end)[1]
    return text


def optimizers_stub() -> str:
    """Give a class for each rule, with the constructor it has at run time."""
    parts = [MADE + OPTIMIZERS + _all(optimizers.__all__)]
    for name in optimizers.__all__:
        rule = RULES[name.lower()]
        types = {n: _scheduled(t) for n, t in _types(rule).items()}
        parameters = signature(getattr(optimizers, name)).parameters.values()
        init = _function("__init__", [Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), *parameters], types)
        summary = cleandoc(rule.__doc__ or "").split("\n", 1)[0]
        body = f'"""{summary}"""\n\n{init}'
        parts.append(f"class {name}(Optimizer):\n" + "".join(f"    {x}\n" if x else "\n" for x in body.split("\n")))
    return "\n".join(parts)


def functional_stub() -> str:
    """Give a function for each rule; an overload for each set of states that its options ask for."""
    parts = [MADE + FUNCTIONAL + _all(functional.__all__)]
    for name in functional.__all__:
        rule = RULES[name[:-1]]
        p, g, *_, t = (q for q in signature(getattr(functional, name)).parameters.values() if q.kind != q.KEYWORD_ONLY)
        named = [q for q in signature(getattr(functional, name)).parameters.values() if q.kind == q.KEYWORD_ONLY]
        types = _types(rule) | {"t": "SupportsIndex", "scale": "float"}
        forms = _states(rule)
        for states in forms:
            arrays = [p, g, *(Parameter(s, Parameter.POSITIONAL_ONLY) for s in states)]
            mark = "@overload\n" if len(forms) > 1 else ""
            parts.append(mark + _function(name, [*arrays, t, *named], types) + "\n")
    return parts[0] + "\n" + "".join(parts[1:])


def package_stub() -> str:
    """Re-export every public name from where it is."""
    homes = [(f"fastgd.{home}", name) for name, home in fastgd._HOMES.items()]
    homes += [("fastgd", name) for name in fastgd._MODULES]
    homes += [("fastgd.optimizers", name) for name in optimizers.__all__]
    homes.sort(key=lambda x: (x[0], *_order(x[1])[:2], x[1].lower()))  # imports: whatever the case of the letters
    imports = "".join(f"from {home} import {name} as {name}\n" for home, name in homes)
    ruff = "# ruff: noqa: TID251  # names for the type checker; nothing is loaded\n"
    return f'{MADE}{ruff}"""Optimizer update rules at the speed of memory."""\n\n{imports}\n__version__: str\n'


def _order(name: str) -> tuple[bool, bool, str]:
    """Sort as ruff sorts ``__all__``: constants, classes, the rest."""
    return not name.isupper(), not name[0].isupper(), name


def _all(names: Iterable[str]) -> str:
    return "\n__all__ = [\n" + "".join(f'    "{name}",\n' for name in sorted(names, key=_order)) + "]\n"


def _types(rule: type[Rule]) -> dict[str, str]:
    """Types of the hyperparameters: as declared; words by their choices; a list also serves as a tuple."""
    types = {}
    for f in fields(rule):  # type: ignore[arg-type]  # rules are dataclasses
        declared = f.type.__name__ if isinstance(f.type, type) else str(f.type)
        parts = [x.strip() for x in declared.split("|")]
        if f.name in rule.choices:
            words = ", ".join(f'"{word}"' for word in rule.choices[f.name])
            parts = [f"Literal[{words}]" if x == "str" else x for x in parts]
        types[f.name] = " | ".join(f"{x} | list[float]" if x.startswith("tuple") else x for x in parts)
    return types


def _scheduled(declared: str) -> str:
    """Let a number or a tuple of them be a schedule too."""
    return f"_OrSchedule[{declared}]" if declared.startswith(("float", "int", "tuple")) else declared


def _function(name: str, parameters: Iterable[Parameter], types: dict[str, str]) -> str:
    """Write a signature as ruff does: a line for each parameter."""
    lines, previous = [f"def {name}("], None
    for p in parameters:
        if previous == p.POSITIONAL_ONLY != p.kind:
            lines.append("    /,")
        if previous != p.KEYWORD_ONLY == p.kind:
            lines.append("    *,")
        previous = p.kind
        declared = types.get(p.name, "Any" if p.annotation is p.empty else p.annotation)
        default = "" if p.default is p.empty else f" = {p.default!r}".replace("'", '"')
        default = " = ..." if isinstance(p.default, Rule) else default
        lines.append("    self," if p.name == "self" else f"    {p.name}: {declared}{default},")
    return "\n".join([*lines, ") -> None: ..."])


def _states(rule: type[Rule]) -> list[tuple[str, ...]]:
    """Find the sets of states that a rule takes, first that of its defaults, by trying values of each kind."""
    trials: dict[str, tuple[object, ...]] = {}
    for f in fields(rule):  # type: ignore[arg-type]  # rules are dataclasses
        if not f.init:
            continue
        if f.name in rule.choices:
            trials[f.name] = rule.choices[f.name]
        elif isinstance(f.default, bool):
            trials[f.name] = (f.default, not f.default)
        elif isinstance(f.default, float):  # an option may ask whether a number is 0
            trials[f.name] = (f.default, 0.0 if f.default else 0.5)
        elif f.default is None:
            trials[f.name] = (None, 0.5)
    found = dict.fromkeys(_forms(plan(rule())))
    options = set()
    for values in product(*trials.values()):
        try:
            made = rule(**dict(zip(trials, values, strict=True)))
        except HyperparameterError:  # values that do not go together
            continue
        key = repr(made.options())
        if key not in options:
            options.add(key)
            found |= dict.fromkeys(_forms(plan(made)))
    # A type checker sees arrays by position: of the forms with as many states one is enough, the first.
    forms: dict[int, tuple[str, ...]] = {}
    for states in found:
        forms.setdefault(len(states), states)
    return list(forms.values())


def _forms(planned: Plan) -> list[tuple[str, ...]]:
    """Give the states of a matrix, and of an array of one dimension."""
    return [functional.states_of(planned, shape) for shape in ((2, 3), (2,))]


def stale(root: Path) -> dict[Path, str]:
    """Give the files that are not what the registry and the reports say, with what they should be."""
    wanted = {
        root / "README.md": readme((root / "README.md").read_text(encoding="utf-8")),
        root / headline.PICTURE: headline.picture(reports()),
        root / "fastgd" / "__init__.pyi": package_stub(),
        root / "fastgd" / "functional.pyi": functional_stub(),
        root / "fastgd" / "optimizers.pyi": optimizers_stub(),
    }
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text}


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write what is stale, or only name it; 1 if anything is, and was not written."""
    parser = argparse.ArgumentParser(
        description="Write anew all that follows from the registry of rules and the reports of times."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything is stale")
    check = parser.parse_args(arguments).check
    found = stale(root)
    for path, text in found.items():
        print(f"{'stale' if check else 'written'}: {path.relative_to(root)}")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
