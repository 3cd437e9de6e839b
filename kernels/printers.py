"""Four texts of one sweep: vectorised NumPy, typed scalar Python, the same with rounded operations, C++.

Every name that is not the rule's own starts with an underscore (C++: the rule's own start with ``v_``), so that a
rule may call its arrays and scalars whatever it likes.
"""

from __future__ import annotations

import ast
import struct
from typing import ClassVar, Literal

from fastgd.kernels.errors import RuleError
from fastgd.kernels.language import Sweep

DType = Literal["float32", "float64"]

_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COMPARISON = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}


def numpy_text(sweep: Sweep, name: str, dtype: DType) -> str:
    """Text of a function of whole arrays: takes arrays and scalars, returns the tuple of written arrays and terms.

    It needs the globals ``_np`` and ``_T`` (the scalar type of `dtype`).
    """
    return _Numpy(dtype).function(sweep, name)


def scalar_text(sweep: Sweep, name: str, dtype: DType) -> str:
    """Text of a function of one element with typed literals, for ``numba.njit``; otherwise as `numpy_text`.

    It needs the globals ``_math`` and ``_T``.
    """
    return _Scalar(dtype).function(sweep, name)


def rounded_text(sweep: Sweep, name: str, dtype: DType) -> str:
    """Text of a function of one element, for ``numba.cuda``: as `scalar_text`, each operation rounded by itself.

    The compiler of NVIDIA's GPUs contracts ``a * b + c`` to one operation that rounds once, and numba-cuda cannot tell
    it not to; what is rounded by name it leaves alone. It needs the globals ``_lib``, with the functions of
    ``numba.cuda.libdevice``, and ``_T``.
    """
    return _Rounded(dtype).function(sweep, name)


def cxx_text(sweep: Sweep, name: str, dtype: DType) -> str:
    """Text of a C++ device function: takes elements and scalars by value, gives results through references.

    It needs the functions ``fgd_sqrt``, ``fgd_abs`` and ``fgd_copysign``.
    """
    return _Cxx(dtype).function(sweep, name)


def rounded(value: float, dtype: DType) -> float:
    """`value` as it is held in `dtype`.

    Raises
    ------
    RuleError
        If `value` is not finite there.
    """
    if dtype == "float32":
        try:
            return float(struct.unpack("=f", struct.pack("=f", value))[0])
        except OverflowError:
            raise RuleError(f"the number {value!r} in a rule is not finite in float32") from None
    return value


class _Printer:
    conjunctions: ClassVar[dict[type[ast.boolop], str]]
    functions: ClassVar[dict[str, str]]

    def __init__(self, dtype: DType) -> None:
        self.dtype: DType = dtype

    def expression(self, node: ast.expr) -> str:
        e = self.expression
        match node:
            case ast.Name(id=name):
                return self.name(name)
            case ast.Constant(value=value):
                return self.literal(rounded(float(value), self.dtype))  # type: ignore[arg-type]
            case ast.BinOp(left=a, op=op, right=b):
                return f"({e(a)} {_ARITHMETIC[type(op)]} {e(b)})"
            case ast.UnaryOp(op=ast.Not(), operand=a):
                return self.negation(e(a))
            case ast.UnaryOp(op=ast.USub(), operand=a):
                return f"(-{e(a)})"
            case ast.Compare(left=a, ops=[op], comparators=[b]):
                return f"({e(a)} {_COMPARISON[type(op)]} {e(b)})"
            case ast.BoolOp(op=op, values=values):
                return "(" + self.conjunctions[type(op)].join(map(e, values)) + ")"
            case ast.IfExp(test=c, body=a, orelse=b):
                return self.selection(e(c), e(a), e(b))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return f"{self.functions[name]}({', '.join(map(e, arguments))})"
        raise AssertionError(ast.dump(node))  # the parser lets nothing else through

    def name(self, name: str) -> str:
        return name

    def literal(self, value: float) -> str:
        raise NotImplementedError

    def negation(self, condition: str) -> str:
        raise NotImplementedError

    def selection(self, condition: str, yes: str, no: str) -> str:
        raise NotImplementedError


class _Python(_Printer):
    def literal(self, value: float) -> str:
        return f"_T({value!r})"

    def function(self, sweep: Sweep, name: str) -> str:
        results = [*sweep.writes.values(), *sweep.sums.values()]
        lines = [f"def {name}({', '.join(sweep.arrays + sweep.scalars)}):"]
        lines += [f"    {target} = {self.expression(e)}" for target, e in sweep.statements]
        lines += [f"    return ({', '.join(results)},)"]
        return "\n".join(lines) + "\n"


class _Numpy(_Python):
    conjunctions: ClassVar = {ast.And: " & ", ast.Or: " | "}
    functions: ClassVar = {"sqrt": "_np.sqrt", "abs": "_np.abs", "copysign": "_np.copysign"}

    def negation(self, condition: str) -> str:
        return f"(~{condition})"

    def selection(self, condition: str, yes: str, no: str) -> str:
        return f"_np.where({condition}, {yes}, {no})"


class _Scalar(_Python):
    conjunctions: ClassVar = {ast.And: " and ", ast.Or: " or "}
    functions: ClassVar = {"sqrt": "_math.sqrt", "abs": "abs", "copysign": "_math.copysign"}

    def negation(self, condition: str) -> str:
        return f"(not {condition})"

    def selection(self, condition: str, yes: str, no: str) -> str:
        return f"({yes} if {condition} else {no})"


class _Rounded(_Scalar):
    operations: ClassVar = {ast.Add: "add", ast.Mult: "mul", ast.Div: "div"}

    def expression(self, node: ast.expr) -> str:
        single = self.dtype == "float32"
        letter, suffix = ("f", "f") if single else ("d", "")
        match node:
            case ast.BinOp(left=a, op=op, right=b):
                if isinstance(op, ast.Sub):  # libdevice has no dsub_rn; a - b is a + -b in every bit
                    op, b = ast.Add(), ast.UnaryOp(ast.USub(), b)
                name = f"{letter}{self.operations[type(op)]}_rn"
                return f"_lib.{name}({self.expression(a)}, {self.expression(b)})"
            case ast.Call(func=ast.Name(id=name), args=arguments):
                names = {"sqrt": f"{letter}sqrt_rn", "abs": f"fabs{suffix}", "copysign": f"copysign{suffix}"}
                return f"_lib.{names[name]}({', '.join(map(self.expression, arguments))})"
        return super().expression(node)


class _Cxx(_Printer):
    conjunctions: ClassVar = {ast.And: " && ", ast.Or: " || "}
    functions: ClassVar = {"sqrt": "fgd_sqrt", "abs": "fgd_abs", "copysign": "fgd_copysign"}

    def name(self, name: str) -> str:
        return f"v_{name}"

    def literal(self, value: float) -> str:
        # hexadecimal: exact, whatever a compiler thinks of decimals
        return value.hex() + ("f" if self.dtype == "float32" else "")

    def negation(self, condition: str) -> str:
        return f"(!{condition})"

    def selection(self, condition: str, yes: str, no: str) -> str:
        return f"({condition} ? {yes} : {no})"

    def function(self, sweep: Sweep, name: str) -> str:
        real = "float" if self.dtype == "float32" else "double"
        taken = sweep.arrays + sweep.scalars
        results = {**sweep.writes, **sweep.sums}
        parameters = [f"{real} v_{a}" for a in taken] + [f"{real} &o_{a}" for a in results]
        declared = set(taken)
        lines = []
        for target, e in sweep.statements:
            kind = "" if target in declared else ("bool " if _is_condition(e) else f"{real} ")
            declared.add(target)
            lines.append(f"    {kind}v_{target} = {self.expression(e)};")
        lines += [f"    o_{a} = v_{value};" for a, value in results.items()]
        head = f"__device__ __forceinline__ void {name}({', '.join(parameters)}) {{"
        return "\n".join([head, *lines, "}"]) + "\n"


def _is_condition(node: ast.expr) -> bool:
    return isinstance(node, ast.Compare | ast.BoolOp) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )
