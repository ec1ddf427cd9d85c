"""What is changed: each mutant is one small edit of a module's source."""

from __future__ import annotations

import ast
import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

SWAPS: dict[type[ast.AST], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.And: "or", ast.Or: "and",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.FloorDiv: "*", ast.Div: "*", ast.Mod: "*",
    ast.BitOr: "&", ast.BitAnd: "|",
}  # fmt: skip
CALLS = {"max": "min", "min": "max", "sorted": "list", "any": "all", "all": "any"}
NOT_ENTERED = (ast.Assert, ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Mutant:
    """One edit of a module.

    Attributes:
        module: Its path in the repository.
        first_line, last_line: Of the statement that is changed.
        source: The whole module with the edit.
        diff: The lines that differ, ``-`` was and ``+`` is.
    """

    module: str
    first_line: int
    last_line: int
    source: str
    diff: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.module}\n{self.source}".encode()).hexdigest()


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Return all mutants of a module, in the order of its lines."""
    found: dict[str, Mutant] = {}
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + column

    for statement, node, text in _edits(ast.parse(source)):
        end = offset(node.end_lineno or 0, node.end_col_offset or 0)
        start = offset(node.lineno, node.col_offset)
        if text == "":  # an argument or an entry, up to the comma behind it
            end += len(_comma(source.encode()[end:]))
        mutated = (source.encode()[:start] + text.encode() + source.encode()[end:]).decode()
        diff = "".join(
            line
            for line in difflib.unified_diff(
                source.splitlines(keepends=True), mutated.splitlines(keepends=True), n=0
            )
            if not line.startswith(("---", "+++", "@@"))
        )
        span = (statement.lineno, statement.end_lineno or statement.lineno)
        if hasattr(statement, "body"):  # of a compound statement, what is before its block
            span = (node.lineno, node.end_lineno or node.lineno)
        found[mutated] = Mutant(module, *span, mutated, diff)
    return [*found.values()]


def _comma(rest: bytes) -> bytes:
    stripped = rest.lstrip()
    return rest[: len(rest) - len(stripped) + 1] if stripped.startswith(b",") else b""


class _Span:
    """Where an entry of a dict is, which is no node of its own: ``key: value`` or ``**value``."""

    def __init__(self, key: ast.expr | None, value: ast.expr) -> None:
        self.lineno = (key or value).lineno
        self.col_offset = key.col_offset if key else value.col_offset - len("**")
        self.end_lineno, self.end_col_offset = value.end_lineno, value.end_col_offset


Place = ast.expr | ast.stmt | ast.keyword | _Span
Edit = tuple[ast.stmt, Place, str]


def _edits(tree: ast.Module) -> Iterator[Edit]:
    for child in tree.body:
        yield from _statement(child)


def _statement(statement: ast.stmt) -> Iterator[Edit]:
    """Yield the edits of a statement and of those in it."""
    if isinstance(statement, ast.Raise):
        yield statement, statement, "pass"
    if isinstance(statement, NOT_ENTERED) or _is_no_promise(statement):
        return
    yield from ((statement, place, text) for place, text in _whole(statement))
    for name, value in ast.iter_fields(statement):
        if name in {"decorator_list", "annotation", "returns", "bases"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            for nested in _inner(child) if isinstance(child, ast.AST) else ():
                if isinstance(nested, ast.stmt):
                    yield from _statement(nested)
                elif isinstance(nested, ast.expr):
                    yield from ((statement, *edit) for edit in _expression(nested))


def _whole(statement: ast.stmt) -> Iterator[tuple[Place, str]]:
    """Yield what becomes of a statement as a whole."""
    match statement:
        case ast.Expr() | ast.Continue() | ast.Break() | ast.Delete():
            yield statement, "pass"
        case ast.AugAssign(target=target, op=op, value=value):
            yield statement, "pass"
            if type(op) in SWAPS:
                changed = f"{ast.unparse(target)} {SWAPS[type(op)]}= {ast.unparse(value)}"
                yield statement, changed
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()], value=value) if not (
            isinstance(value, ast.Name)  # an argument that is kept: its loss is trivial to see
        ):
            yield statement, "pass"
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield value, "None"
        case ast.If(test=test) | ast.While(test=test) if not _is_swapped(test):
            yield test, f"not ({ast.unparse(test)})"


def _inner(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is in an expression or a clause, but not what is in its statements."""
    yield node
    if isinstance(node, (ast.stmt, *NOT_ENTERED)):
        return
    for name, value in ast.iter_fields(node):
        if name == "annotation" or (name == "func" and isinstance(value, ast.Name)):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _inner(child)


def _expression(node: ast.expr) -> Iterator[tuple[Place, str]]:
    match node:
        case ast.Compare(ops=[op], comparators=[right]) if type(op) in SWAPS:
            changed = f"{ast.unparse(node.left)} {SWAPS[type(op)]} {ast.unparse(right)}"
            yield node, changed
        case ast.BoolOp(values=values):
            joint = f" {SWAPS[type(node.op)]} "
            yield node, "(" + joint.join(f"({ast.unparse(value)})" for value in values) + ")"
        case ast.BinOp(op=op) if type(op) in SWAPS:
            yield node, f"({ast.unparse(node.left)} {SWAPS[type(op)]} {ast.unparse(node.right)})"
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node, f"({ast.unparse(node.operand)})"
        case ast.IfExp(test=test) if not _is_swapped(test):
            yield test, f"not ({ast.unparse(test)})"
        case ast.Constant(value=bool() | int() | float() as value):
            yield node, repr(not value if isinstance(value, bool) else value + 1)
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
            tests = [test for part in node.generators for test in part.ifs]
            yield from ((test, f"not ({ast.unparse(test)})") for test in tests)
        case _:
            yield from _parts(node)


def _parts(node: ast.expr) -> Iterator[tuple[Place, str]]:
    """Yield what is taken out of an expression, or put in its place."""
    match node:
        case ast.Dict(keys=keys, values=values):
            yield from ((_Span(*entry), "") for entry in zip(keys, values, strict=True))
        case ast.Set(elts=elements) | ast.List(elts=[_, _, *_] as elements):
            yield from ((element, "") for element in elements)
        case ast.Call(func=func, keywords=keywords):
            # What a constructor is given is missed at once, unless it is an option.
            is_class = isinstance(func, ast.Name) and func.id[0].isupper()
            for keyword in keywords:
                if keyword.arg and not (is_class and not isinstance(keyword.value, ast.Constant)):
                    yield keyword, ""
            if isinstance(func, ast.Name) and func.id in CALLS:
                yield func, CALLS[func.id]


def _is_swapped(test: ast.expr) -> bool:
    """Tell whether another edit negates a condition already, or it is none."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return not isinstance(test.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    return isinstance(test, ast.Constant | ast.UnaryOp)


def _is_no_promise(statement: ast.stmt) -> bool:
    """Tell whether a statement is there for readers of the code or of the log."""
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) == "TYPE_CHECKING"
    is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_docstring or ast.unparse(statement).startswith("logger.")
