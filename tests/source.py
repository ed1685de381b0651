"""The project's modules and what they import, read from their source: nothing is imported here."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def modules_in(root: Path, *packages: str) -> dict[str, Path]:
    """Return the modules of packages by dotted name; a folder's `__init__` has the folder's."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in packages
        for path in sorted((root / package).rglob("*.py"))
    }


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """Return every imported name, within functions and TYPE_CHECKING too.

    `from a import b` gives a.b where that is a module, else a.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in modules else node.module)
    return names


def import_graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return which modules each module needs.

    A folder's `__init__` stands above all modules of its folder. Who imports a module of another
    folder runs that folder's `__init__` first; one's own counts only where it is imported by name.
    """
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, path in modules.items():
        names = imports_of(path, modules) & modules.keys()
        above = {module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)}
        graph[module] |= names | ({name.rpartition(".")[0] for name in names} - above)
        if path.name != "__init__.py":
            graph[module.rpartition(".")[0]].add(module)
    return {module: (names & modules.keys()) - {module} for module, names in graph.items()}
