"""The stub of pyvips agrees with libvips's own description of every method."""

import ast
import inspect

import pytest
import pyvips
from pyvips import Introspect

from tests.suite import ROOT

STUB = ROOT / "stubs" / "pyvips" / "__init__.pyi"
_TYPES = {
    "gboolean": ("bool",),
    "gchararray": ("str",),
    "gdouble": ("float",),
    "gint": ("int",),
    "VipsArrayDouble": ("list[float]", "_Numbers"),
    "VipsArrayInt": ("list[int]",),
    "VipsArrayImage": ("list[Image]",),
    "VipsBlob": ("bytes",),
    "VipsImage": ("Image", "Image | _Numbers"),
    "VipsInterpolate": ("Interpolate",),
}


PARTS = ast.parse(STUB.read_text()).body
IMAGE = next(part for part in PARTS if isinstance(part, ast.ClassDef) and part.name == "Image")
METHODS = [part for part in IMAGE.body if isinstance(part, ast.FunctionDef)]
_WRITTEN = [method for method in METHODS if method.name in vars(pyvips.Image)]
_MADE = [method for method in METHODS if method.name not in vars(pyvips.Image)]


def _types(operation: Introspect, name: str) -> tuple[str, ...]:
    """Returns how the stub may write the type of an argument or a result. An enum is written as the
    name of its value."""
    return _TYPES.get(pyvips.type_name(operation.details[name]["type"]), ("str",))


def _positional(method: ast.FunctionDef) -> list[ast.arg]:
    decorators = [ast.unparse(decorator) for decorator in method.decorator_list]
    return method.args.args if "staticmethod" in decorators else method.args.args[1:]


@pytest.mark.parametrize("method", _MADE, ids=[f"{m.name}:{m.lineno}" for m in _MADE])
def test_an_operation_has_the_arguments_and_results_of_libvips(method: ast.FunctionDef) -> None:
    operation = Introspect.get(method.name)
    given = _positional(method)
    assert len(given) == len(operation.method_args)
    for argument, name in zip(given, operation.method_args, strict=True):
        assert argument.annotation
        assert ast.unparse(argument.annotation) in _types(operation, name), name

    for argument in method.args.kwonlyargs:
        assert argument.annotation
        said = ast.unparse(argument.annotation)
        if argument.arg in operation.optional_output:
            assert said == "Literal[True]", argument.arg
        else:
            assert argument.arg in operation.optional_input
            assert said in _types(operation, argument.arg), argument.arg

    assert method.returns
    assert ast.unparse(method.returns) == _results(operation, method)


def _results(operation: Introspect, method: ast.FunctionDef) -> str:
    kinds = [_types(operation, name)[0] for name in operation.required_output]
    asked = [a.arg for a in method.args.kwonlyargs if a.arg in operation.optional_output]
    if asked:
        kinds.append(f"dict[str, {_types(operation, asked[0])[0]}]")
        return f"tuple[{', '.join(kinds)}]"
    if len(kinds) > 1:
        assert len(set(kinds)) == 1
        return f"list[{kinds[0]}]"
    return kinds[0] if kinds else "None"


@pytest.mark.parametrize("method", _WRITTEN, ids=[f"{m.name}:{m.lineno}" for m in _WRITTEN])
def test_a_method_takes_the_arguments_of_its_source(method: ast.FunctionDef) -> None:
    source = inspect.getattr_static(pyvips.Image, method.name)
    parameters = list(inspect.signature(getattr(source, "__func__", source)).parameters.values())
    takes_any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}
    assert takes_any_name or {a.arg for a in method.args.kwonlyargs} <= names
    is_static = isinstance(source, staticmethod)
    assert len(_positional(method)) <= len(parameters) - (not is_static)


def test_every_other_name_of_the_stub_is_there() -> None:
    for part in PARTS:
        if isinstance(part, ast.ClassDef | ast.FunctionDef) and not part.name.startswith("_"):
            assert hasattr(pyvips, part.name)

    image = pyvips.Image.black(1, 1)
    for member in IMAGE.body:
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            assert type(getattr(image, member.target.id)).__name__ == ast.unparse(member.annotation)
