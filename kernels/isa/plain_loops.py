"""Loops over ranges as loops on a comparison, for compilers to which a range is three values.

Numba counts how often a range's loop has still to run, beside the loop's value and the step; on a
GPU these are registers, and a division before each loop whose step is not a constant.
"""

import ast
from dataclasses import dataclass


@dataclass(slots=True)
class PlainLoops:
    """Rewrites the loops of a function; the names of what they count on are numbered."""

    num_loops: int = 0

    def rewrite(self, node: ast.For) -> list[ast.stmt] | None:
        """Return a loop over a range as assignments and a `while`, None for other loops.

        A step that is not a constant must be positive, as that of all kernels is.
        """
        parts = _range_of(node)
        if parts is None:
            return None
        start, stop, step = parts
        self.num_loops += 1
        names = {part: f"_epbench_{part}_{self.num_loops}" for part in ("next", "stop", "step")}
        goes_down = isinstance(step, ast.UnaryOp) and isinstance(step.op, ast.USub)
        before = [_assign(names["next"], start), _assign(names["stop"], stop)]
        if not _is_constant(step):
            before.append(_assign(names["step"], step))
            step = _read(names["step"])
        test = ast.Compare(
            _read(names["next"]), [ast.Gt() if goes_down else ast.Lt()], [_read(names["stop"])]
        )
        take = ast.Assign([node.target], _read(names["next"]))
        advance = ast.AugAssign(ast.Name(names["next"], ast.Store()), ast.Add(), step)
        # A `continue` must not leave out the advance; elsewhere it comes last, so that the value
        # and the next one are not kept both.
        first = any(isinstance(inner, ast.Continue) for inner in ast.walk(node))
        body = [take, advance, *node.body] if first else [take, *node.body, advance]
        loop = ast.While(test, body, node.orelse)
        return [ast.copy_location(_placed(part, node), node) for part in (*before, loop)]


def _range_of(node: ast.For) -> tuple[ast.expr, ast.expr, ast.expr] | None:
    call = node.iter
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return None
    if call.func.id != "range" or not isinstance(node.target, ast.Name):
        return None
    first = call.args[0] if len(call.args) > 1 else ast.Constant(0)
    step = call.args[2] if len(call.args) > 2 else ast.Constant(1)
    return first, call.args[min(len(call.args) - 1, 1)], step


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant)


def _assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def _read(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _placed(new: ast.stmt, old: ast.stmt) -> ast.stmt:
    """Give a new statement the line of the old one, its parts that have one keep theirs."""
    for node in ast.walk(new):
        if isinstance(node, ast.stmt | ast.expr) and not hasattr(node, "lineno"):
            ast.copy_location(node, old)
    return new
