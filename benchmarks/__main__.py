"""Lists the benchmarks, or runs them one after the other.

    python -m benchmarks --list
    python -m benchmarks [--quick] [NAME ...]

A name is a folder or a benchmark, such as `dcgmm` or `dcgmm.outliers`; by default all are run. The
first one that fails ends the run.
"""

import argparse
import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "benchmarks"
FOLDER = Path(__file__).parent
MAIN = 'if __name__ == "__main__":'


def runnable() -> list[str]:
    """Names of all modules that are benchmarks themselves, such as ``"dcgmm.outliers"``."""
    paths = sorted(FOLDER.glob("*/*.py"))
    return [f"{path.parent.name}.{path.stem}" for path in paths if MAIN in path.read_text()]


def chosen(names: Iterable[str]) -> list[str]:
    """The benchmarks that are named, or that lie in a folder that is named; all, without names.

    Raises:
        ValueError: If there is no benchmark of a name.
    """
    everything = runnable()
    found = []
    for name in names:
        of_name = [one for one in everything if name in (one, one.split(".")[0])]
        if not of_name:
            raise ValueError(f"no benchmark is named {name!r}; there are {', '.join(everything)}")
        found += of_name
    return list(dict.fromkeys(found)) or everything


def title(name: str) -> str:
    """The first sentence that a benchmark says of itself."""
    path = FOLDER.joinpath(*name.split(".")).with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def run(names: Iterable[str], options: Iterable[str]) -> int:
    """Runs benchmarks with options; returns zero, or the exit status of the first that fails."""
    environment = {"MPLBACKEND": "Agg"} | os.environ
    for name in names:
        module = f"{PACKAGE}.{name}"
        print(f"\n== python -m {' '.join([module, *options])}", flush=True)
        start = time.perf_counter()
        command = [sys.executable, "-m", module, *options]
        status = subprocess.run(command, cwd=FOLDER.parent, env=environment).returncode
        seconds = time.perf_counter() - start
        if status:
            print(f"{module} failed after {seconds:.0f} s, exit status {status}", file=sys.stderr)
            return status
        print(f"== {module}: {seconds:.0f} s", flush=True)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="folders or benchmarks")
    parser.add_argument("--list", action="store_true", help="name the benchmarks, and run none")
    parser.add_argument("--quick", action="store_true", help="the smallest setting of each")
    arguments = parser.parse_args()
    try:
        names = chosen(arguments.names)
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        for name in names:
            print(f"{name:26} {title(name)}")
        return
    sys.exit(run(names, ["--quick"] if arguments.quick else []))


if __name__ == "__main__":
    main()
