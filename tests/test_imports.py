"""What an import of the library costs, and which module may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyromix

PACKAGE = Path(pyromix.__file__).parent

# From the bottom: a room may import those of the rows above its own, and no other room of its
# row. The root, which collects the public names, is above them all.
LAYERS = (
    ("core",),
    ("numerics",),
    ("preprocessing", "plotting", "metrics", "datasets", "evidence"),
    ("checkpoints",),
    ("conditioning",),
    ("training",),
    ("mixtures",),
    ("flows",),
    ("drmm", "rad", "frmdn", "maxent", "dcgmm"),
    ("hierarchy", "guides", "simulations"),
    ("class_conditional", "testing", "tables"),
    ("sklearn",),
)


def imports(root):
    """The imports of a package: for every module the modules of the package that it needs.

    All that the code says counts: also imports within functions, and for type checkers alone.
    Importing a module runs the `__init__` of the packages that it is in, too, unless these are
    being imported already because the importing module is in them as well.
    """
    files = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    needed = {}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                start = ".".join((base if node.level else []) + [node.module or ""]).strip(".")
                named = {f"{start}.{alias.name}" for alias in node.names}
                targets |= {name if name in files else start for name in named}
        targets &= files.keys()
        for target in tuple(targets):
            while target := target.rpartition(".")[0]:
                if not f"{module}.".startswith(f"{target}."):
                    targets.add(target)
        needed[module] = targets
    return needed


def circles(needed):
    """Sets of modules that can all be reached from one another."""
    reached = {}
    for module in needed:
        seen, waiting = set(), [module]
        while waiting:
            new = needed[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[module] = seen
    return {
        frozenset({module} | {other for other in seen if module in reached[other]})
        for module, seen in reached.items()
        if module in seen
    }


def upward(needed, layers):
    """Imports of a room that is not below: pairs of a module and what it imports."""
    height = {room: i for i, rooms in enumerate(layers) for room in rooms}
    found = set()
    for module, targets in needed.items():
        for target in targets:
            here, there = _room(module), _room(target)
            if here == there or here is None:
                continue
            if there is None or height[there] >= height[here]:
                found.add((module, target))
    return found


def _room(module):
    """The part of the package that a module is in; None for the package itself."""
    return module.split(".")[1] if "." in module else None


def test_no_module_needs_itself():
    assert not circles(imports(PACKAGE))


def test_imports_go_down():
    assert not upward(imports(PACKAGE), LAYERS)


def test_every_room_has_a_layer():
    assert {_room(module) for module in imports(PACKAGE)} - {None} == {
        room for rooms in LAYERS for room in rooms
    }


def make_package(folder, **sources):
    """Writes a package named `made`: modules by name, with two underscores for a dot."""
    root = folder / "made"
    for name, source in sources.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for path in (root, *(p for p in root.rglob("*") if p.is_dir())):
        (path / "__init__.py").touch()
    return root


CIRCLES = {
    "plain": (
        {"a": "from .b import x", "b": "from .c import x", "c": "import made.a"},
        {"made.a", "made.b", "made.c"},
    ),
    "in a function": (
        {"a": "from . import b", "b": "def f():\n    from .a import x"},
        {"made.a", "made.b"},
    ),
    "for type checkers": (
        {"a": "from .b import x", "b": "if TYPE_CHECKING:\n    from .a import X"},
        {"made.a", "made.b"},
    ),
    "of a package and another": (
        {"p__a": "from ..q.b import x", "q__b": "from ..p.c import x", "p__c": ""},
        {"made.p.a", "made.q.b", "made.p"},
    ),
    "with its own package": ({"p__a": "from . import x"}, {"made.p", "made.p.a"}),
}


@pytest.mark.parametrize("name", CIRCLES)
def test_circles_are_found(tmp_path, name):
    sources, expected = CIRCLES[name]
    root = make_package(tmp_path, **sources)
    if "made.p" in expected:
        (root / "p" / "__init__.py").write_text("from .a import x")
    assert circles(imports(root)) == {frozenset(expected)}


def test_a_tree_has_no_circle(tmp_path):
    sources = {
        "a": "import torch\nfrom torch import nn",
        "p__b": '"""Docs.\n\n>>> from made.p.c import x\n"""\nfrom ..a import x',
        "p__c": "from . import b\nfrom .b import x",
    }
    root = make_package(tmp_path, **sources)
    (root / "p" / "__init__.py").write_text("from .c import x")
    needed = imports(root)
    assert not circles(needed)
    assert needed["made.p.b"] == {"made.a"}
    assert not upward(needed, (("a",), ("p",)))


@pytest.mark.parametrize(
    ("module", "source", "imported"),
    [
        ("low__a", "from ..high.b import x", {"made.high.b", "made.high"}),
        ("low__a", "def f():\n    import made.high.b", {"made.high.b", "made.high"}),
        ("low__a", "if TYPE_CHECKING:\n    from ..high import X", {"made.high"}),
        ("low__a", "from .. import VERSION", {"made"}),
        ("side__a", "from ..high import x", {"made.high"}),
    ],
)
def test_upward_imports_are_found(tmp_path, module, source, imported):
    root = make_package(tmp_path, low__c="", high__b="from ..low.c import x")
    make_package(tmp_path, **{module: source})
    needed = imports(root)
    name = "made." + module.replace("__", ".")
    layers = (("low",), ("high", "side"))
    assert upward(needed, layers) == {(name, target) for target in imported}


def run(script):
    subprocess.run([sys.executable, "-c", script], check=True)


def test_import_leaves_out_what_takes_long():
    run("""
import sys, torch, pyro
had = set(sys.modules)
import pyromix
heavy = {"lightning_fabric", "lightning_utilities", "torchmetrics", "fsspec", "scipy", "sympy",
         "matplotlib", "arviz", "xarray", "pandas", "sklearn", "pooch", "pytest", "torch._dynamo",
         "torch.distributed.fsdp"}
assert not heavy & set(sys.modules) - had, heavy & set(sys.modules) - had
""")


def test_sub_packages_are_attributes():
    rooms = {room for rooms in LAYERS for room in rooms}
    run(f"""
import pyromix
from types import ModuleType
for name in {sorted(rooms - {"class_conditional"})}:
    assert isinstance(getattr(pyromix, name), ModuleType), name
    assert name in dir(pyromix)
assert pyromix.class_conditional.__module__ == "pyromix.class_conditional"
try:
    pyromix.nothing
except AttributeError:
    pass
else:
    raise AssertionError("a name that does not exist was found")
""")


def test_public_names_are_there():
    run("""
import pyromix
names = {}
exec("from pyromix import *", names)
assert set(pyromix.__all__) <= set(names)
assert pyromix.__version__ == __import__("pyromix.core.version").core.version.__version__
""")
