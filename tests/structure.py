"""Measure how the code is laid out: sizes of folders, and who imports whom.

The files are only parsed, never run, and nothing outside the standard library is needed. Tests of
the layering use the functions; as a command it prints tables of a checkout:

    python tests/structure.py [CHECKOUT]

How things are counted:

- A *room* is a folder with modules in it, and a folder inside a room is a room of its own
  (`codream_secure/flower/operations`). A file that lies loose at the top of a package is a room
  of its own too, because files there stand on different floors. In the table of sizes the loose
  files of a package share one row.
- An *import* is an edge from a file to a file of the same checkout. `import a.b` and
  `from a import b` lead to the submodule `a.b` where there is one; `from a import name` leads to
  `a/__init__.py` where `name` is no submodule. Importing a submodule is no import of the
  `__init__.py` files above it, though Python runs them. Imports under `TYPE_CHECKING` count.
  Imports inside functions count, except in the chain that says otherwise. Strings that name a
  module, as `importlib` takes them, do not count.
- A *chain* is a path along imports. Its length is its number of files. Files that import each
  other in a circle count as one file.
- A *circle* is a set of two or more files, or rooms, that reach each other along imports.
- An import *runs back up* if it has to be removed so that the rooms can be put into an order in
  which each imports only from below. The order with the fewest such imports is looked for: among
  all orders for circles of up to 16 rooms, and step by step, which may find more, for larger ones.
- *Floors* are the rooms on the longest path of rooms, imports that run back up left out.
- A *line of code* is a line that holds something other than comments, docstrings and blanks. The
  length of a function is the number of its lines from `def` to its end, docstring left out, and
  blank lines and comments included; a function inside a function is counted by itself as well.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PACKAGES = ("codream_secure", "protocols")
SCRIPTS = "benchmarks"  # its files import each other by bare names, without a package above them
LONG_MODULE = 350
_INIT = "__init__"
_EXACT = 16  # rooms in a circle for which all orders are compared
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
T = TypeVar("T")
Graph = Mapping[T, Collection[T]]


# -- files and rooms ----------------------------------------------------------------------------


def files(root: Path, tops: Collection[str] = (*PACKAGES, SCRIPTS)) -> list[Path]:
    """Return the modules under the given folders, as sorted paths relative to the checkout."""
    return sorted(path.relative_to(root) for top in tops for path in (root / top).rglob("*.py"))


def room_of(path: Path) -> str:
    """Return the room of a file, which is given relative to the checkout."""
    return path.as_posix() if len(path.parts) == 2 else path.parent.as_posix()


def rooms(root: Path) -> dict[str, list[Path]]:
    """Return the files of every room of the packages."""
    found: dict[str, list[Path]] = {}
    for path in files(root, PACKAGES):
        found.setdefault(room_of(path), []).append(path)
    return found


def room_imports(imports: Graph[Path]) -> dict[str, set[str]]:
    """Return which rooms each room imports from, itself left out."""
    found: dict[str, set[str]] = {room_of(path): set() for path in imports}
    for path, targets in imports.items():
        found[room_of(path)] |= {room_of(target) for target in targets} - {room_of(path)}
    return found


# -- imports ------------------------------------------------------------------------------------


def file_imports(root: Path, *, in_functions: bool = True) -> dict[Path, set[Path]]:
    """Return which files of a checkout each of its files imports.

    Args:
        root: folder of the checkout; all paths in the result are relative to it.
        in_functions: whether imports inside functions count.
    """
    paths = files(root)
    modules = {_module_name(path): path for path in paths}
    graph = {}
    for path in paths:
        tree = ast.parse((root / path).read_text(encoding="utf-8"))
        names = _imported_names(tree, _package_of(path), in_functions=in_functions)
        graph[path] = {target for name in names if (target := _resolve(name, modules))} - {path}
    return graph


def _module_name(path: Path) -> str:
    """Return the dotted name that a file is imported by."""
    parts = path.with_suffix("").parts
    if parts[-1] == _INIT:
        parts = parts[:-1]
    return ".".join(parts[1:] if parts[0] == SCRIPTS else parts)


def _package_of(path: Path) -> list[str]:
    """Return the parts of the package that relative imports in a file start from."""
    return list(path.parent.parts)


def _imported_names(
    tree: ast.Module, package: list[str], *, in_functions: bool
) -> Iterator[tuple[str, str | None]]:
    """Yield (module, name) for ``from module import name``, and (module, None) for ``import``."""
    for node in _statements(tree, in_functions=in_functions):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def _statements(node: ast.AST, *, in_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if in_functions or not isinstance(child, Function):
            yield child
            yield from _statements(child, in_functions=in_functions)


def _resolve(imported: tuple[str, str | None], modules: Mapping[str, Path]) -> Path | None:
    """Return the file that an import leads to; None if it is of no file of the checkout."""
    module, name = imported
    prefix = f"{SCRIPTS}."
    if module.startswith(prefix):
        module = module[len(prefix) :]
    if name is not None and (found := modules.get(f"{module}.{name}" if module else name)):
        return found
    return modules.get(module)


# -- graphs -------------------------------------------------------------------------------------


def components(graph: Graph[T]) -> list[list[T]]:
    """Return the strongly connected components, those that import from none of the rest first."""
    index: dict[T, int] = {}
    low: dict[T, int] = {}
    stack: list[T] = []
    found: list[list[T]] = []

    def visit(start: T) -> None:
        todo = [(start, iter(_targets(graph, start)))]
        index[start] = low[start] = len(index)
        stack.append(start)
        while todo:
            node, targets = todo[-1]
            following = next(targets, None)
            if following is None:
                todo.pop()
                if todo:
                    low[todo[-1][0]] = min(low[todo[-1][0]], low[node])
                if low[node] == index[node]:
                    at = stack.index(node)
                    found.append(stack[at:])
                    del stack[at:]
            elif following not in index:
                index[following] = low[following] = len(index)
                stack.append(following)
                todo.append((following, iter(_targets(graph, following))))
            elif following in stack:
                low[node] = min(low[node], index[following])

    for node in sorted(graph, key=str):
        if node not in index:
            visit(node)
    return found


def _targets(graph: Graph[T], node: T) -> list[T]:
    return sorted((target for target in graph[node] if target in graph), key=str)


def cycles(graph: Graph[T]) -> list[list[T]]:
    """Return the circles, each sorted: the components of two nodes or more."""
    return [sorted(one, key=str) for one in components(graph) if len(one) > 1]


def longest_chain(graph: Graph[T]) -> list[T]:
    """Return the longest chain from its top down; a circle in it is named by its first node."""
    whole = components(graph)
    home = {node: number for number, one in enumerate(whole) for node in one}
    below: list[list[int]] = []
    for number, one in enumerate(whole):
        lower = {home[target] for node in one for target in _targets(graph, node)} - {number}
        best = max((below[other] for other in sorted(lower)), key=len, default=[])
        below.append([number, *best])
    chain = max(below, key=len, default=[])
    return [min(whole[number], key=str) for number in chain]


def back_up(imports: Graph[Path], order: list[str]) -> list[tuple[Path, Path]]:
    """Return the imports from a lower room to a higher one.

    Args:
        imports: files by file, as `file_imports` returns them.
        order: rooms, the highest first; imports from or to rooms that are not in it do not count.
    """
    floor = {room: number for number, room in enumerate(order)}
    return [
        (path, target)
        for path in sorted(imports)
        for target in sorted(imports[path])
        if room_of(path) in floor
        and room_of(target) in floor
        and floor[room_of(path)] > floor[room_of(target)]
    ]


def best_order(imports: Graph[Path]) -> list[str]:
    """Return the rooms, the highest first, in an order with few imports that run back up."""
    weights: dict[tuple[str, str], int] = {}
    for path, targets in imports.items():
        for target in targets:
            edge = room_of(path), room_of(target)
            weights[edge] = weights.get(edge, 0) + 1
    order: list[str] = []
    for one in components(room_imports(imports)):
        few = len(one) <= _EXACT
        inside = _exact_order(sorted(one), weights) if few else _greedy_order(sorted(one), weights)
        order = inside + order
    return order


def _exact_order(names: list[str], weights: Mapping[tuple[str, str], int]) -> list[str]:
    """Return the best of all orders: for every set of rooms at the top, which of them is last."""
    n = len(names)
    weight = [[weights.get((a, b), 0) for b in names] for a in names]
    cost: list[float] = [0.0] + [float("inf")] * ((1 << n) - 1)
    last = [0] * (1 << n)
    for upper in range(1 << n):
        for new in range(n):
            if not upper >> new & 1:
                more = sum(weight[new][above] for above in range(n) if upper >> above & 1)
                if cost[upper] + more < cost[upper | 1 << new]:
                    cost[upper | 1 << new] = cost[upper] + more
                    last[upper | 1 << new] = new
    order, upper = [], (1 << n) - 1
    while upper:
        order.append(names[last[upper]])
        upper &= ~(1 << last[upper])
    return order[::-1]


def _greedy_order(names: list[str], weights: Mapping[tuple[str, str], int]) -> list[str]:
    """Return a good order: the room that is imported least by the rest goes next."""
    order: list[str] = []
    left = list(names)
    while left:
        out = {a: sum(weights.get((a, b), 0) for b in left if b != a) for a in left}
        into = {a: sum(weights.get((b, a), 0) for b in left if b != a) for a in left}
        highest = max(left, key=lambda name: (out[name] - into[name], name))
        order.append(highest)
        left.remove(highest)
    return order


def floors(imports: Graph[Path]) -> int:
    """Return the number of floors that the rooms stand on."""
    upward = set(back_up(imports, best_order(imports)))
    down = {p: {t for t in targets if (p, t) not in upward} for p, targets in imports.items()}
    return len(longest_chain(room_imports(down)))


# -- sizes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a module is.

    Attributes:
        path: of the module.
        raw: all its lines.
        code: lines of code.
        functions: length and name of each function.
    """

    path: Path
    raw: int
    code: int
    functions: tuple[tuple[int, str], ...]


def size_of(root: Path, path: Path) -> Size:
    """Return how large a module is."""
    text = (root / path).read_text(encoding="utf-8")
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    return Size(
        path=path,
        raw=len(text.splitlines()),
        code=len(_code_lines(text) - _docstring_lines(ast.walk(tree))),
        functions=tuple((function_length(node), node.name) for node in functions),
    )


def function_length(node: Function) -> int:
    """Return the lines of a function from ``def`` to its end, docstring left out."""
    return (node.end_lineno or 0) - node.lineno + 1 - len(_docstring_lines([node]))


def _code_lines(text: str) -> set[int]:
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    return found


def _docstring_lines(nodes: Iterable[ast.AST]) -> set[int]:
    found: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node):
            first = node.body[0]
            found.update(range(first.lineno, (first.end_lineno or 0) + 1))
    return found


def by_folder(root: Path) -> dict[str, list[Size]]:
    """Return the sizes of all modules by folder; loose files are under their package's name."""
    found: dict[str, list[Size]] = {}
    for path in files(root):
        found.setdefault(path.parent.as_posix(), []).append(size_of(root, path))
    return dict(sorted(found.items()))


def loose_files(root: Path, package: str = PACKAGES[0]) -> list[Path]:
    """Return the modules at the top of a package, in none of its folders."""
    return [path for path in files(root, [package]) if len(path.parts) == 2]


# -- tables -------------------------------------------------------------------------------------

_HEADER = ("folder", "modules", "code", "functions", "longest", "median", "p90", f">{LONG_MODULE}")


def _row(name: str, sizes: Collection[Size]) -> tuple[str, ...]:
    lengths = sorted(length for size in sizes for length, _ in size.functions)
    long = sum(size.raw > LONG_MODULE for size in sizes)
    code = sum(size.code for size in sizes)
    if not lengths:
        return name, str(len(sizes)), str(code), "0", "-", "-", "-", str(long)
    return (
        name,
        str(len(sizes)),
        str(code),
        str(len(lengths)),
        str(lengths[-1]),
        f"{statistics.median(lengths):g}",
        str(lengths[min(len(lengths) - 1, len(lengths) * 9 // 10)]),
        str(long),
    )


def _print_sizes(root: Path) -> None:
    found = by_folder(root)
    rows = [_HEADER, *(_row(name, sizes) for name, sizes in found.items())]
    for top in (*PACKAGES, SCRIPTS):
        inside = [s for name, sizes in found.items() if name.split("/")[0] == top for s in sizes]
        rows.append(_row(f"all of {top}", inside))
    everything = [size for sizes in found.values() for size in sizes]
    rows.append(_row("all", everything))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))
    print(f"\nModules over {LONG_MODULE} lines:")
    for size in sorted(everything, key=lambda size: -size.raw):
        if size.raw > LONG_MODULE:
            print(f"  {size.raw:4}  {size.path.as_posix()}")
    print("\nLongest functions:")
    functions = [(n, name, size.path) for size in everything for n, name in size.functions]
    for length, name, path in sorted(functions, reverse=True)[:10]:
        print(f"  {length:4}  {name} in {path.as_posix()}")


def _print_graph(root: Path, tops: tuple[str, ...], title: str) -> None:
    inside = _only(tops)
    imports = inside(file_imports(root))
    outside_functions = inside(file_imports(root, in_functions=False))
    by_room = room_imports(imports)
    upward = back_up(imports, best_order(imports))
    steps = {(room_of(path), room_of(target)) for path, target in upward}
    circles, file_circles = cycles(by_room), cycles(imports)
    chain, shorter = longest_chain(imports), longest_chain(outside_functions)
    print(f"\n{title}")
    print(f"  files                                    {len(imports)}")
    print(f"  imports between files                    {sum(map(len, imports.values()))}")
    print(f"  longest chain of files                   {len(chain)}")
    print(f"  without imports inside functions         {len(shorter)}")
    print(f"  circles of files                         {len(file_circles)}")
    print(f"  rooms                                    {len(by_room)}")
    print(f"  arrows between rooms                     {sum(map(len, by_room.values()))}")
    print(f"  floors of rooms                          {floors(imports)}")
    print(f"  arrows that run back up                  {len(steps)}")
    print(f"  imports that run back up                 {len(upward)}")
    print(f"  circles of rooms                         {len(circles)}")
    for path, target in upward:
        print(f"    up: {path.as_posix()} -> {target.as_posix()}")
    for kind, found in (("rooms", circles), ("files", file_circles)):
        for circle in found:
            print(f"    circle of {kind}: {', '.join(map(str, circle))}")
    print("    chain: " + "\n        -> ".join(path.as_posix() for path in chain))


def _only(tops: Collection[str]) -> Callable[[Graph[Path]], dict[Path, set[Path]]]:
    """Return a function that keeps of a graph of files those under the given folders."""

    def keep(graph: Graph[Path]) -> dict[Path, set[Path]]:
        return {
            path: {target for target in targets if target.parts[0] in tops}
            for path, targets in graph.items()
            if path.parts[0] in tops
        }

    return keep


def main(arguments: list[str]) -> int:
    """Print the tables of the checkout that is named, or of the one that this file is in."""
    root = Path(arguments[0]) if arguments else Path(__file__).parents[1]
    _print_sizes(root)
    print()
    for package in PACKAGES:
        print(f"Files loose at the top of {package}: {len(loose_files(root, package))}")
    _print_graph(root, PACKAGES[:1], "codream_secure alone")
    _print_graph(root, PACKAGES, "codream_secure and protocols")
    _print_graph(root, (*PACKAGES, SCRIPTS), "with benchmarks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
