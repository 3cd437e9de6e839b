"""The rule language: what a rule may say, what it means, and how it is refused.

A rule's function is read as text, checked, folded over its static options and lowered to a few forms that every
printer renders alike. The functions below are that meaning, scalar by scalar: a rule also runs as plain Python on
floats.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from builtins import abs as abs  # part of the language, and Python's own
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

from fastgd.kernels.errors import RuleError
from fastgd.kernels.squares import joining, parts_of, two_parts

Kind = Literal["element", "scalar", "constant", "condition"]
Level = Literal["", "per_segment", "total"]

# ---- the functions of the language -------------------------------------------------------------------------------
# NumPy, Numba and CUDA disagree about NaN and -0.0 in most of these, so the meanings are ours.


def sqrt(x: float) -> float:
    """Square root; NaN for negative x."""
    return math.sqrt(x) if not x < 0 else math.nan


def sign(x: float) -> float:
    """1 for positive x, -1 for negative; a zero and a NaN come out as they went in."""
    return 1.0 if x > 0 else (-1.0 if x < 0 else x)


def minimum(a: float, b: float) -> float:
    """Give the smaller of a and b; a NaN of either comes out; of equals, b."""
    return a if a < b or a != a else b


def maximum(a: float, b: float) -> float:
    """Give the larger of a and b; a NaN of either comes out; of equals, b."""
    return a if a > b or a != a else b


def clip(x: float, lo: float, hi: float) -> float:
    """Bring x between lo and hi; NaN stays NaN."""
    return lo if x < lo else (hi if x > hi else x)


def copysign(a: float, b: float) -> float:
    """Give a the sign of b; NaN where b is NaN, whose sign bit means nothing."""
    return math.copysign(a, b) if b == b else b


def squared(x: float) -> float:
    """Give x * x; as a summed term it counts in full also where a float32 cannot hold the square."""
    return x * x


def per_segment(**terms: float) -> dict[str, float]:
    """Name the terms that `measure` sums over each segment."""
    return terms


def total(**terms: float) -> dict[str, float]:
    """Name the terms that `measure` sums over all segments."""
    return terms


_ARITY = {"sqrt": 1, "abs": 1, "squared": 1, "sign": 1, "minimum": 2, "maximum": 2, "clip": 3, "copysign": 2}

# The same meanings as text, in compare-and-select: they are put in the place of a call, once, for every target.
_LOWERED = {
    "sqrt": "sqrt(a)",
    "abs": "abs(a)",
    "squared": "a * a",
    "sign": "1.0 if a > 0.0 else (-1.0 if a < 0.0 else a)",
    "minimum": "a if a < b or a != a else b",
    "maximum": "a if a > b or a != a else b",
    "clip": "b if a < b else (c if a > c else a)",
    "copysign": "copysign(a, b) if b == b else b",
}

_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div)
_COMPARISON = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)


# ---- what a parsed function is -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """One function of a rule, checked, folded and lowered.

    Attributes
    ----------
    name
        ``update``, ``measure``, ``combine`` or ``derive``.
    arrays
        Array elements it takes (of ``combine`` and ``derive``: sums and scalar states), in the order of its signature.
    scalars
        Uniform numbers it uses, in the order of its signature.
    statements
        Assignments, each the name and the lowered expression.
    writes
        For each array that is written, the name that holds its new value.
    sums
        For each summed term, the name that holds it.
    level
        Whether the sums are taken per segment or in total; empty without sums.
    squares
        Terms that are `squared`; in the place of each, `sums` has two parts, see `fastgd.kernels.squares`.
    """

    name: str
    arrays: tuple[str, ...]
    scalars: tuple[str, ...]
    statements: tuple[tuple[str, ast.expr], ...]
    writes: Mapping[str, str]
    sums: Mapping[str, str] = field(default_factory=dict)
    level: Level = ""
    squares: tuple[str, ...] = ()

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the summed terms, as the rule gives them."""
        whole = {part: name for name in self.squares for part in parts_of(name)}
        return tuple(dict.fromkeys(whole.get(name, name) for name in self.sums))

    @property
    def reads(self) -> tuple[str, ...]:
        """Arrays whose old element is used: those named before they are assigned."""
        assigned: set[str] = set()
        read: set[str] = set()
        for name, expression in self.statements:
            read |= names_in(expression) - assigned
            assigned.add(name)
        return tuple(a for a in self.arrays if a in read)

    def bytes_per_element(self, itemsize: int) -> int:
        """Bytes that it reads and writes for each element."""
        return itemsize * (len(self.reads) + len(self.writes))


def names_in(node: ast.AST) -> set[str]:
    """Give the names that stand in an expression."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def joined(combine: Sweep, measure: Sweep) -> Sweep:
    """Have `combine` take each sum of squares in the two parts that `measure` gathers it in."""
    arrays: list[str] = []
    statements = []
    for name in combine.arrays:
        arrays += parts_of(name) if name in measure.squares else [name]
        if name in measure.squares:
            statements.append(joining(name))
    return replace(combine, arrays=tuple(arrays), statements=(*statements, *combine.statements))


def parse(
    function: Callable[..., Any],
    options: Mapping[str, object],
    scalars: Collection[str],
    *,
    combine: bool = False,
) -> Sweep:
    """Read a function of a rule.

    Parameters
    ----------
    function
        ``update``, ``measure``, ``combine`` or ``derive`` of a rule, a static method.
    options
        Static options by name; they are folded away.
    scalars
        Names that `function` may take behind ``*``.
    combine
        Whether arithmetic on scalars alone is allowed (it runs in float64) and new names may be returned.

    Returns
    -------
    Sweep

    Raises
    ------
    RuleError
        Where the function leaves the language; the message has file, line, expression and the way out.
    """
    return _Parser(function, options, scalars, combine).parse()


class _Parser:
    def __init__(
        self,
        function: Callable[..., Any],
        options: Mapping[str, object],
        scalars: Collection[str],
        combine: bool,
    ) -> None:
        self.title = getattr(function, "__qualname__", repr(function))
        if inspect.ismethod(function):
            raise RuleError(f"{self.title}: has no @staticmethod above it (a rule's arithmetic has no self)")
        try:
            lines, self.first_line = inspect.getsourcelines(function)
        except (OSError, TypeError):
            raise RuleError(
                f"{self.title}: its source text cannot be read; define the rule in a file or a notebook cell"
            ) from None
        self.file = inspect.getsourcefile(function)
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        if not isinstance(tree, ast.FunctionDef):
            self.refuse(tree, "write it as a function with def")
        self.tree = tree
        self.options = options
        self.combine = combine
        self.statements: list[tuple[str, ast.expr]] = []
        self.squares: list[str] = []
        self.temporaries = 0
        self._signature(scalars)

    def refuse(self, node: ast.AST, why: str) -> NoReturn:
        line = self.first_line + getattr(node, "lineno", 1) - 1
        what = node.name if isinstance(node, ast.FunctionDef) else " ".join(ast.unparse(node).split())
        raise RuleError(f"{self.file}:{line}: {self.title}: `{what}`: {why}")

    def _signature(self, scalars: Collection[str]) -> None:
        a = self.tree.args
        if a.vararg or a.kwarg or a.defaults or any(a.kw_defaults) or a.posonlyargs:
            self.refuse(self.tree, "takes plain arguments only: arrays, then * and scalars, without defaults")
        self.positional = [x.arg for x in a.args]
        keywords = [x.arg for x in a.kwonlyargs]
        for name in self.positional + keywords:
            self._check_name(self.tree, name)
        for name in keywords:
            if name not in self.options and name not in scalars:
                known = ", ".join(sorted({*scalars, *self.options})) or "nothing"
                self.refuse(
                    self.tree,
                    f"takes `{name}`, which prepare(), derive(), combine() and options() do not give "
                    f"(they give {known})",
                )
        self.uniform = [k for k in keywords if k not in self.options]
        self.kinds: dict[str, Kind] = dict.fromkeys(self.positional, "scalar" if self.combine else "element")
        self.kinds |= dict.fromkeys(self.uniform, "scalar")

    def _check_name(self, node: ast.AST, name: str) -> None:
        if name.startswith("_"):
            self.refuse(node, f"`{name}` starts with an underscore: such names are kept for generated code")
        if name in _ARITY or name in ("per_segment", "total"):
            self.refuse(node, f"`{name}` is a function of the rule language")

    # ---- statements

    def parse(self) -> Sweep:
        *body, last = self.tree.body
        self._body(body)
        if not isinstance(last, ast.Return) or last.value is None:
            self.refuse(last, "a rule ends with `return` and the names of what it writes")
        writes, sums, level = self._returned(last.value)
        if not self.combine:  # there a sum may be returned as it is
            # What has lost its assignment by folding is not written, and if nothing names it, not allocated.
            assigned = {name for name, _ in self.statements}
            writes = {a: w for a, w in writes.items() if a in assigned}
        used = set().union(*(names_in(e) for _, e in self.statements), writes.values(), sums.values())
        return Sweep(
            name=self.tree.name,
            arrays=tuple(a for a in self.positional if a in used),
            scalars=tuple(s for s in self.uniform if s in used),
            statements=tuple(self.statements),
            writes=writes,
            sums=sums,
            level=level,
            squares=tuple(self.squares),
        )

    def _body(self, body: Iterable[ast.stmt]) -> None:
        for statement in body:
            match statement:
                case ast.Expr(value=ast.Constant()) | ast.Pass():
                    pass
                case ast.If(test=test, body=yes, orelse=no):
                    if not self._is_static(test):
                        self.refuse(test, "`if` is for static options; for numbers write `a if c else b`")
                    self._body(yes if self._static(test) else no)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._assign(statement, name, value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    self._assign(statement, name, value)
                case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                    both = ast.BinOp(ast.Name(name), op, value)
                    self._assign(statement, name, ast.fix_missing_locations(ast.copy_location(both, target)))
                case ast.Assign():
                    self.refuse(statement, "assign to one name at a time")
                case ast.Return():
                    self.refuse(statement, "return once, as the last statement")
                case _:
                    self.refuse(statement, "is not in the rule language")

    def _assign(self, statement: ast.stmt, name: str, value: ast.expr) -> None:
        self._check_name(statement, name)
        if name in self.options:
            self.refuse(statement, f"`{name}` is a static option and cannot be assigned")
        if name in self.uniform:
            self.refuse(statement, f"`{name}` is the same for all elements: compute it in prepare(), in float64")
        expression, kind = self._expression(value)
        if kind == "constant":
            kind = "scalar" if self.combine else "element"
        if (self.kinds.get(name, kind) == "condition") != (kind == "condition"):
            self.refuse(statement, f"`{name}` changes between a number and a condition")
        self.kinds[name] = kind
        self.statements.append((name, expression))

    def _returned(self, value: ast.expr) -> tuple[dict[str, str], dict[str, str], Level]:
        writes: dict[str, str] = {}
        sums: dict[str, str] = {}
        level: Level = ""
        for item in value.elts if isinstance(value, ast.Tuple) else [value]:
            match item:
                case ast.Call(func=ast.Name(id="per_segment" | "total" as called), args=[], keywords=terms) if (
                    not self.combine and not level and terms
                ):
                    level = called
                    for term in terms:
                        sums |= self._term(self._term_name(item, term), term.value)
                case ast.Call(func=ast.Name(id="per_segment" | "total")):
                    self.refuse(item, "sum once, as per_segment(name=term, ...) or total(name=term, ...)")
                case ast.Name(id=name) if self.combine:
                    if self.kinds.get(name, "condition") == "condition":
                        self.refuse(item, "is not a number that was assigned")
                    writes[name] = name
                case ast.Name(id=name) if name in self.positional:
                    writes[name] = name
                case _:
                    names = "numbers" if self.combine else f"arrays ({', '.join(self.positional)})"
                    self.refuse(item, f"return the names of {names}: what is returned is written")
        return writes, sums, level

    def _term_name(self, call: ast.AST, term: ast.keyword) -> str:
        if term.arg is None:
            self.refuse(call, "sum once, as per_segment(name=term, ...) or total(name=term, ...)")
        self._check_name(call, term.arg)
        return term.arg

    def _term(self, name: str, value: ast.expr) -> dict[str, str]:
        """Name what is summed for a term, and what holds it."""
        match value:
            case ast.Call(func=ast.Name(id="squared"), args=[root], keywords=[]):
                is_square, value = True, root
            case _:
                is_square = False
        expression, kind = self._expression(value)
        if kind == "condition":
            expression = ast.IfExp(expression, ast.Constant(1.0), ast.Constant(0.0))
        elif kind != "element":
            self.refuse(value, "holds no array element: there is nothing to sum")
        if is_square:
            self.squares.append(name)
            self.statements.append((f"_root_{name}", expression))
            self.statements += two_parts(name, f"_root_{name}")
            return {part: part for part in parts_of(name)}
        self.statements.append((f"_s_{name}", expression))
        return {name: f"_s_{name}"}

    # ---- static options

    def _static(self, node: ast.AST) -> Any:
        """Value of an expression of options and constants; KeyError where it is none."""
        match node:
            case ast.Name(id=name):
                return self.options[name]
            case ast.Constant(value=value):
                return value
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._static(operand)
            case ast.BoolOp(op=op, values=values):
                decide = all if isinstance(op, ast.And) else any
                return decide([self._static(v) for v in values])
            case ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq() as op], comparators=[right]):
                return (self._static(left) == self._static(right)) == isinstance(op, ast.Eq)
        raise KeyError

    def _is_static(self, node: ast.AST) -> bool:
        try:
            self._static(node)
        except KeyError:
            return False
        return not isinstance(node, ast.Constant)

    # ---- expressions

    def _expression(self, node: ast.expr) -> tuple[ast.expr, Kind]:
        match node:
            case ast.Constant(value=value):
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    self.refuse(node, "is no finite number")
                return ast.Constant(float(value)), "constant"
            case ast.Name(id=name):
                if name in self.options:
                    self.refuse(node, "a static option is no number: give it to prepare()")
                if name not in self.kinds:
                    self.refuse(node, "is used before it is assigned")
                return ast.Name(name), self.kinds[name]
            case ast.BinOp(left=left, op=op, right=right):
                if not isinstance(op, _ARITHMETIC):
                    self.refuse(node, "only + - * / (a square is x * x)")
                (a, b), kind = self._numbers(node, left, right)
                return ast.BinOp(a, op, b), kind
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                a, kind = self._expression(operand)
                if kind == "condition":
                    self.refuse(node, "a condition is no number: write `1 if c else 0`")
                if isinstance(a, ast.Constant):
                    return ast.Constant(-float(a.value)), kind  # type: ignore[arg-type]  # made a float above
                return ast.UnaryOp(ast.USub(), a), kind
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ast.UnaryOp(ast.Not(), self._condition(operand)), "condition"
            case ast.BoolOp(op=boolean, values=values):
                return ast.BoolOp(boolean, [self._condition(v) for v in values]), "condition"
            case ast.Compare(left=left, ops=[comparison], comparators=[right]) if isinstance(comparison, _COMPARISON):
                (a, b), _ = self._numbers(node, left, right)
                return ast.Compare(a, [comparison], [b]), "condition"
            case ast.Compare():
                self.refuse(node, "compare two numbers at a time")
            case ast.IfExp(test=test, body=yes, orelse=no) if self._is_static(test):
                return self._expression(yes if self._static(test) else no)
            case ast.IfExp(test=test, body=yes, orelse=no):
                c = self._condition(test)
                (a, _), (b, _) = self._number(yes), self._number(no)
                return ast.IfExp(c, a, b), "scalar" if self.combine else "element"
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _ARITY:
                if len(arguments) != _ARITY[name]:
                    self.refuse(node, f"{name} takes {_ARITY[name]} numbers, given {len(arguments)}")
                operands, kind = self._numbers(node, *arguments)
                return self._lower(name, operands), kind
        self.refuse(node, f"is not in the rule language (arithmetic, comparisons, a if c else b, {', '.join(_ARITY)})")

    def _condition(self, node: ast.expr) -> ast.expr:
        expression, kind = self._expression(node)
        if kind != "condition":
            self.refuse(node, "is a number where a condition is wanted: write a comparison")
        return expression

    def _number(self, node: ast.expr) -> tuple[ast.expr, Kind]:
        expression, kind = self._expression(node)
        if kind == "condition":
            self.refuse(node, "a condition is no number: write `1 if c else 0`")
        return expression, kind

    def _numbers(self, node: ast.expr, *operands: ast.expr) -> tuple[list[ast.expr], Kind]:
        """Operands of one operation; in a sweep at least one is an array element."""
        pairs = [self._number(o) for o in operands]
        kinds = {kind for _, kind in pairs}
        if "element" not in kinds and not self.combine:
            # 1 - float32(0.999) is off by 1.3e-5; the host has float64 and does it once.
            self.refuse(node, "holds no array element: compute it in prepare(), in float64")
        return [e for e, _ in pairs], "element" if "element" in kinds else "scalar"

    def _lower(self, name: str, operands: list[ast.expr]) -> ast.expr:
        if name not in ("sqrt", "abs"):  # those name their operand once; the others get it as a temporary
            operands = [self._named(o) for o in operands]
        places = dict(zip("abc", operands, strict=False))

        class Put(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.expr:
                return places.get(node.id, node)

            def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:  # only -1.0
                assert isinstance(node.operand, ast.Constant)
                return ast.Constant(-node.operand.value)  # type: ignore[operator]

        lowered = ast.parse(_LOWERED[name], mode="eval").body
        result: ast.expr = Put().visit(lowered)
        return result

    def _named(self, expression: ast.expr) -> ast.expr:
        if isinstance(expression, ast.Name | ast.Constant):
            return expression
        self.temporaries += 1
        name = f"_{self.temporaries}"
        self.statements.append((name, expression))
        return ast.Name(name)
