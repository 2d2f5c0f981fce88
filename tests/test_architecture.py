"""Data flows one way: a package may import only from packages of lower layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ichfast

LAYERS = (
    ("errors", "windows", "system"),
    ("labels", "sources", "dicom", "augment", "models", "packed"),
    ("nifti",),
    ("store",),
    ("prepare", "synth", "loading", "evaluation"),
    ("training",),
    ("recipes",),
    ("runs",),
    ("series",),
    ("predict", "report", "export", "doctor"),
    ("pacs",),
    ("cli", "__main__"),
)
"""Packages and root modules, lowest layer first. Those of one layer do not import
each other, except in the first, where each may import those before it."""

LAYER_OF = {name: depth for depth, names in enumerate(LAYERS) for name in names}
ROOT = Path(ichfast.__path__[0])


def module_name(path: Path) -> str:
    """The dotted name of a file of ichfast, `ichfast` itself left out."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {
    module_name(path): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.name != "__init__.py"
}


def imported_modules(path: Path) -> Iterator[str]:
    """Yield every module of ichfast that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module=str(module), names=names, level=0):
                candidates = [f"{module}.{name.name}" for name in names] + [module]
            case ast.Import(names=names):
                candidates = [name.name for name in names]
            case _:
                continue
        for candidate in candidates:
            name = candidate.removeprefix("ichfast.")
            if candidate.startswith("ichfast.") and name in MODULES:
                yield name


IMPORTS = {name: set(imported_modules(path)) for name, path in MODULES.items()}


def package_of(module: str) -> str:
    return module.partition(".")[0]


def may_import(package: str, other: str) -> bool:
    """Whether the layers allow an import from another package."""
    if LAYER_OF[package] == LAYER_OF[other] == 0:
        return LAYERS[0].index(other) < LAYERS[0].index(package)
    if {package, other} == set(LAYERS[-1]):
        return package == "__main__"
    return LAYER_OF[other] < LAYER_OF[package]


def test_every_module_has_its_layer() -> None:
    assert {package_of(module) for module in MODULES} == set(LAYER_OF)


def test_packages_import_only_from_lower_layers() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, found in IMPORTS.items()
        for imported in sorted(found)
        if package_of(imported) != package_of(module)
        and not may_import(package_of(module), package_of(imported))
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    reached: dict[str, set[str]] = {}

    def reach(module: str, path: tuple[str, ...]) -> set[str]:
        assert module not in path, " -> ".join((*path, module))
        if module not in reached:
            further = (reach(each, (*path, module)) for each in IMPORTS[module])
            reached[module] = IMPORTS[module].union(*further)
        return reached[module]

    for module in MODULES:
        reach(module, ())
