"""The direction of the arrows: flows -> registry -> align."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "align": {"registry", "flows", "prefect", "mlflow", "open_clip", "timm", "datasets", "transformers"},
    "registry": {"flows", "prefect"},
}


def imported(source: str, package: str = "") -> set[str]:
    """Top-level names of every module that a source imports, wherever in it, also by importlib with a plain name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(package if node.level else (node.module or "").split(".")[0])
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("import_module", "importlib.import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names.add(str(node.args[0].value).split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        str(file.relative_to(ROOT)): sorted(bad)
        for file in files
        if (bad := imported(file.read_text(), package) & FORBIDDEN[package])
    }
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "import registry.store",
        "from registry import store",
        "def f():\n    import registry",
        "import importlib\nimportlib.import_module('registry.store')",
    ],
)
def test_the_parser_sees_every_kind_of_import(source: str) -> None:
    assert "registry" in imported(source)


@pytest.mark.parametrize("package", ["align", "registry", "flows"])
def test_every_module_says_what_it_is_for(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text())), file
