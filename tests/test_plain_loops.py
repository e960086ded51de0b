"""Loops over ranges as loops on a comparison do the same, in whatever way they end."""

import ast
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.isa.plain_loops import PlainLoops

_BODIES = {
    "plain": """
        for i in range({args}):
            seen.append(i)
    """,
    "the value is assigned to": """
        for i in range({args}):
            i = i * 7
            seen.append(i)
    """,
    "the end is moved": """
        for i in range({args}):
            seen.append(i)
            b, c = 0, 9
    """,
    "continue": """
        for i in range({args}):
            if i % 3 == 0:
                continue
            seen.append(i)
    """,
    "break": """
        for i in range({args}):
            if i % 5 == 4:
                break
            seen.append(i)
        else:
            seen.append(-100)
    """,
    "loops in loops": """
        for i in range({args}):
            for j in range(i, b):
                if j % 2:
                    continue
                seen.append(i * 100 + j)
            for j in range(3):
                seen.append(j)
    """,
}


class _Rewrites(ast.NodeTransformer):
    def __init__(self) -> None:
        self.loops = PlainLoops()

    def visit_For(self, node: ast.For) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        return self.loops.rewrite(node) or node


def _function(body: str, *, rewrites: bool) -> Callable[[int, int, int], list[int]]:
    text = "def run(a, b, c):\n    seen = []\n" + textwrap.indent(textwrap.dedent(body), "    ")
    tree = ast.parse(text + "\n    return seen\n")
    if rewrites:
        tree = _Rewrites().visit(tree)
        assert not any(isinstance(node, ast.For) for node in ast.walk(tree))
    namespace: dict[str, Callable[[int, int, int], list[int]]] = {}
    exec(compile(ast.fix_missing_locations(tree), "loops", "exec"), namespace)
    return namespace["run"]


@pytest.mark.parametrize("args", ["b", "a, b", "a, b, c", "b, a, -1", "a, b, 4"])
@pytest.mark.parametrize("body", _BODIES.values(), ids=_BODIES)
@settings(deadline=None, max_examples=30)
@given(a=st.integers(-9, 9), b=st.integers(-9, 9), c=st.integers(1, 5))
def test_rewritten_loops_do_the_same(body: str, args: str, a: int, b: int, c: int) -> None:
    body = body.format(args=args)
    told = _function(body, rewrites=True)(a, b, c)
    assert told == _function(body, rewrites=False)(a, b, c)


def test_other_loops_are_left() -> None:
    (loop,) = ast.parse("for i in (1, 2):\n    pass\n").body
    assert isinstance(loop, ast.For)
    assert PlainLoops().rewrite(loop) is None


def test_lines_stay_where_they_were() -> None:
    (loop,) = ast.parse("\n\nfor i in range(3):\n    x = i\n").body
    assert isinstance(loop, ast.For)
    parts = PlainLoops().rewrite(loop)
    assert parts is not None
    (body,) = [node for part in parts for node in ast.walk(part) if isinstance(node, ast.Assign)
               and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "x"]  # fmt: skip
    assert body.lineno == 4
    assert {part.lineno for part in parts} == {3}
