"""Reads a function of x from the text a case records it by, e.g. "0.95*tanh(1.3*x)"."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(torch, name)
    for name in ("tanh", "sin", "cos", "exp", "sqrt", "abs", "sign", "sigmoid", "clamp", "clip")
}


def function_of_x(text: str) -> Callable[[Tensor], Tensor]:
    """The function that `text` describes: numbers, x, + - * / **, and the functions above; anything else is refused."""
    tree = ast.parse(text, mode="eval").body

    def evaluate(node: ast.AST, x: Tensor) -> Any:
        match node:
            case ast.Name(id="x"):
                return x
            case ast.Constant(value=int() | float() as value):
                return value
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](evaluate(left, x), evaluate(right, x))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](evaluate(operand, x))
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=arguments, keywords=[]) if (
                name in _FUNCTIONS
            ):
                return _FUNCTIONS[name](*(evaluate(argument, x) for argument in arguments))
        raise ValueError(f"no rule for {ast.unparse(node)!r} in the function {text!r}")

    return lambda x: evaluate(tree, x)
