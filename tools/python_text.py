"""Inserts text into Python files at places that are found by parsing them. Whoever calls this lets
ruff lay the result out."""

import ast


class Problem(Exception):
    """One line that says why nothing is written."""


def end_of(text: str, node: ast.AST) -> int:
    """Returns the position where a node's text ends. The parser counts columns in bytes."""
    line, column = getattr(node, "end_lineno", 0), getattr(node, "end_col_offset", 0)
    before = text.splitlines(keepends=True)[: line - 1]
    rest = text.splitlines(keepends=True)[line - 1]
    return sum(map(len, before)) + len(rest.encode()[:column].decode())


def with_line(text: str, node: ast.AST, line: str) -> str:
    """Returns the text with a line inserted below a node."""
    at = text.index("\n", end_of(text, node)) + 1
    return text[:at] + line + text[at:]


def with_element(text: str, last: ast.AST, element: str) -> str:
    """Returns the text with an element after the last of a list, dictionary or argument list."""
    at = end_of(text, last)
    if text[at:].lstrip().startswith(","):  # one element per line: a comment may follow the last
        at = text.index("\n", at)
        return f"{text[:at]}\n{element},{text[at:]}"
    return f"{text[:at]}, {element}{text[at:]}"


def with_imports(text: str, *lines: str) -> str:
    """Returns the text with more imports, which ruff sorts later."""
    imports = [
        node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return with_line(text, imports[-1], "\n".join(lines) + "\n")


def assigned(path: str, text: str, name: str, kind: type[ast.expr]) -> ast.expr:
    """Returns the value of a module's variable. Raises Problem."""
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if [each.id for each in targets if isinstance(each, ast.Name)] == [name]:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if isinstance(value, kind):
                return value
    raise Problem(f"{path} has no {name} that is written as a {kind.__name__.lower()}")


def function(path: str, text: str, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    raise Problem(f"{path} has no function {name}")
