"""Public functions and methods have type annotations, which pyright checks."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "nvae_jax"


def public_functions(body, prefix=""):
    """(name, node, whether it is a method) of the public functions and methods of a file."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for name, function, _ in public_functions(node.body, f"{prefix}{node.name}."):
                yield name, function, True
        elif isinstance(node, ast.FunctionDef):
            if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                yield f"{prefix}{node.name}", node, False


def missing(function, is_method):
    """The parameters of a function without annotation, and "return" if its result has none."""
    given = function.args
    named = [*given.posonlyargs, *given.args][is_method and not is_static(function) :]
    starred = [argument for argument in (given.vararg, given.kwarg) if argument]
    names = [a.arg for a in (*named, *given.kwonlyargs, *starred) if a.annotation is None]
    returns = function.returns or function.name == "__init__"
    return names if returns else [*names, "return"]


def is_static(function):
    return any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)


def test_public_functions_have_annotations():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    found = [
        f"{file.relative_to(PACKAGE)}: {name}({', '.join(names)})"
        for file in files
        for name, function, is_method in public_functions(ast.parse(file.read_text()).body)
        if (names := missing(function, is_method))
    ]
    assert not found


def test_missing_annotations_are_found():
    text = "class A:\n def f(self, a: int, b, *c, d): ...\ndef g(a) -> int: ...\ndef _h(a): ..."
    functions = public_functions(ast.parse(text).body)
    found = {name: missing(function, is_method) for name, function, is_method in functions}
    assert found == {"A.f": ["b", "d", "c", "return"], "g": ["a"]}


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()
