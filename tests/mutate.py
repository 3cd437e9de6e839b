"""Break every rule in every small way, and see whether its oracle notices: ``python tests/mutate.py [rule ...]``.

A mutant has one operator, comparison, number, function or order of a rule file exchanged, or one written name left out.
It is held to what the tests hold the rule to: its defaults, its oracle, over many steps and settings, and torch where
torch has the rule; on the numpy backend, which compiles nothing. The survivors are printed.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import itertools
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import matrix_oracles  # noqa: F401  # registers
import test_oracles as suite
from oracles import SETTINGS, schedule_free_x

import fastgd
from fastgd import optimizers
from fastgd.kernels import rules
from fastgd.kernels.rules import RULES

BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
COMPARED = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
CALLED = {"maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "sqrt": "abs", "sign": "abs"}


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a node may become."""
    match node:
        case ast.BinOp(op=op) if type(op) in BINARY:
            new = copy.deepcopy(node)
            new.op = BINARY[type(op)]()
            yield "operator", new
        case ast.Compare(ops=[op]) if type(op) in COMPARED:
            new = copy.deepcopy(node)
            new.ops = [COMPARED[type(op)]()]
            yield "comparison", new
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield "sign", operand
        case ast.BoolOp(op=op):
            new = copy.deepcopy(node)
            new.op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield "connective", new
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield "branches", ast.IfExp(test, orelse, body)
        case ast.Constant(value=bool(value)):
            yield "flag", ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield "number", ast.Constant(value + 1)
        case ast.Call(func=ast.Name(id=name) as func, args=[first, *_]) if name in CALLED:
            new = copy.deepcopy(node)
            new.func.id = CALLED[func.id]
            if CALLED[func.id] == "abs":
                new.args = [first]
            yield "function", new
        case ast.Tuple(elts=elements) if len(elements) > 1 and all(isinstance(e, ast.Name) for e in elements):
            for k in range(1, len(elements)):
                yield "not written", ast.Tuple(elements[:k] + elements[k + 1 :], ast.Load())


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of every mutant of a rule file; docstrings, imports, ranges and checks are left alone."""
    parts: list[ast.AST] = []  # no annotations: they are for the reader
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            parts += node.body
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(member, ast.FunctionDef) and member.name != "check":
                parts += member.body
            elif (
                isinstance(member, ast.AnnAssign) and member.value and "ClassVar" not in ast.unparse(member.annotation)
            ):
                parts.append(member.value)
    inside = {id(node) for part in parts for node in ast.walk(part)}
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in inside:
            for kind, new in changes(node):
                whole = copy.deepcopy(tree)
                old = next(itertools.islice(ast.walk(whole), index, None))
                yield node.lineno, kind, ast.unparse(ast.fix_missing_locations(_Put(old, new).visit(whole)))


class _Put(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def notice(name: str, rule: Any) -> bool:
    """Whether anything that the tests hold a rule to fails for this one."""
    before = RULES[name], getattr(fastgd, rule.__name__)
    RULES[name] = rule
    try:
        setattr(fastgd, rule.__name__, optimizers._named(rule))
        suite.test_oracle_has_the_arguments_and_defaults_of_the_rule(name)
        for setting in SETTINGS[name]:
            run = suite.Run(name, suite.vary(setting), "float64", "numpy")
            for gradients in run.grads:
                run.step(gradients)
            run.check(run.grads)
            if "eval" in rule.asides:
                check_average(run, setting)
    except Exception:
        return True
    finally:
        RULES[name] = before[0]
        setattr(fastgd, rule.__name__, before[1])
    return False


def check_average(run: Any, setting: dict[str, Any]) -> None:
    """Compare the parameters in eval mode with the oracle's average."""
    ys, states = run.expect(run.grads)
    beta = setting.get("momentum", setting.get("betas", (0.9,))[0])
    run.opt.eval()
    xs = schedule_free_x(ys, [states["z"][i].reshape(y.shape) for i, y in enumerate(ys)], beta)
    assert max(map(suite.error, run.params.values(), xs)) < 1e-12
    run.opt.train()
    assert max(map(suite.error, run.params.values(), ys)) < 1e-12


def loaded(text: str, names: list[str], folder: str, number: int) -> list[Any]:
    """Classes of a rule file of this text; it must lie in a file, as the rule language reads the source."""
    file = Path(folder) / f"mutant_{names[0]}_{number}.py"  # a name of its own: sources are cached
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(f"fastgd.kernels.rules.{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return [getattr(module, RULES[name].__name__) for name in names]


def noticed(text: str, names: list[str], folder: str, number: int) -> bool:
    """Whether a rule file of this text is noticed."""
    try:
        classes = loaded(text, names, folder, number)
    except Exception:
        return True
    return any(notice(name, cls) for name, cls in zip(names, classes, strict=True))


def main(wanted: list[str]) -> None:
    """Try all mutants of the rules named, by default of all."""
    np.seterr(all="ignore")
    warnings.simplefilter("ignore")
    total, survived = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(Path(rules.__file__).parent.glob("[a-z]*.py")):
            tree = ast.parse(path.read_text())
            names = [n.name.lower() for n in tree.body if isinstance(n, ast.ClassDef) and n.name.lower() in RULES]
            if wanted and not set(wanted) & set(names):
                continue
            if noticed(ast.unparse(tree), names, folder, 0):
                sys.exit(f"{path.name} fails as it is")
            for line, kind, text in mutants(tree):
                total += 1
                if not noticed(text, names, folder, total):
                    survived.append(f"{path.name}:{line}: {kind}")
    print(*survived, sep="\n")
    print(f"{total - len(survived)} of {total} mutants killed, {1 - len(survived) / total:.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
