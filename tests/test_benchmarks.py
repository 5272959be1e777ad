"""Benchmarks are found, and what the documentation says of them exists."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.py")]
SCRIPT = 'import sys\n\nif __name__ == "__main__":\n    print(sys.argv[1:])\n    {}\n'


def run(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path):
    """A package with the runner, and benchmarks of which the second one fails."""
    for name, last in {"one.first": "", "two.second": "sys.exit(3)", "two.third": ""}.items():
        path = tmp_path / "benchmarks" / Path(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SCRIPT.format(last))
    (tmp_path / "benchmarks" / "two" / "helper.py").write_text("raise RuntimeError\n")
    (tmp_path / "benchmarks" / "__init__.py").touch()
    runner = (ROOT / "benchmarks" / "__main__.py").read_text()
    (tmp_path / "benchmarks" / "__main__.py").write_text(runner)
    return tmp_path


def listed():
    return [line.split()[0] for line in run("--list").stdout.splitlines()]


def test_the_list_has_every_module_with_a_main_function():
    mains = [
        ".".join(path.relative_to(ROOT / "benchmarks").with_suffix("").parts)
        for path in sorted((ROOT / "benchmarks").glob("*/*.py"))
        if any(getattr(node, "name", "") == "main" for node in ast.parse(path.read_text()).body)
    ]
    assert listed() == mains
    assert "dcgmm.outliers" in mains
    assert not [name for name in mains if name.startswith("common.")]


def test_a_folder_can_be_named():
    names = run("--list", "drmm", "rad.plane").stdout.splitlines()
    assert {name.split(".")[0] for name in names} == {"drmm", "rad"}
    assert len([name for name in names if name.startswith("rad.")]) == 1


def test_an_unknown_name_is_an_error():
    result = run("--list", "nothing")
    assert result.returncode == 2
    assert "no benchmark is named 'nothing'" in result.stderr
    assert "dcgmm.outliers" in result.stderr


def test_all_are_run_until_one_fails(copy):
    result = run("--quick", cwd=copy)
    assert result.returncode == 3
    assert "benchmarks.two.second failed" in result.stderr
    assert re.findall(r"^== python -m benchmarks\.(\S+)", result.stdout, re.MULTILINE) == [
        "one.first",
        "two.second",
    ]
    assert result.stdout.count("['--quick']") == 2


def test_success_is_reported(copy):
    assert run("one", "two.third", cwd=copy).returncode == 0


def test_named_commands_exist():
    names = {
        name
        for page in PAGES
        for name in re.findall(r"python -m benchmarks\.([\w.]+\w)", page.read_text())
    }
    assert names
    assert names <= set(listed())
