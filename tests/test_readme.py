"""What the README and the documentation show works as written."""

import re
from pathlib import Path

import pytest
import torch

import pyromix

from .run_shortened import shorten
from .test_imports import LAYERS, PACKAGE, imports

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))


def examples(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_examples_run(page, capsys):
    shown = examples((ROOT / page).read_text())
    assert shown
    for example in shown:
        lines = [line for line in example.splitlines() if line]
        assert len(lines) <= 15
        torch.set_default_dtype(torch.float32)
        exec(example, {})
        assert "tensor(" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_examples_of_the_pages_run(page, short, monkeypatch):
    if short:
        shorten(monkeypatch.setattr)
    torch.set_default_dtype(torch.float32)
    for example in examples(page.read_text()):
        exec(example, {})


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_and_pictures_exist(page):
    for target, section in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        # Notebooks are copied beside the pages when those are built.
        folder = ROOT if target.startswith("tutorials/") else page.parent
        path = folder / target if target else page
        assert path.exists(), target
        if section:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert section in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert README.count("```python") == README.count("![") == 1
    assert len(README.split()) <= 700


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_modules_that_are_named_exist(page):
    text = page.read_text()
    for name in re.findall(r"python -m ([\w.]+\w)", text):
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name
    for name in re.findall(r"`((?:pyromix|tests|benchmarks|tutorials)/[\w./]*)`", text):
        assert (ROOT / name).exists(), name


def test_everything_public_is_in_the_reference():
    listed = set(re.findall(r"^   (\w+)$", (ROOT / "docs" / "api.rst").read_text(), re.MULTILINE))
    assert listed == set(pyromix.__all__)


def test_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert commands == {"demo", "test"}
    for command in commands | {"lint", "docs", "benchmark"}:
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def reached(arrows):
    """Every pair of a room and one that can be reached from it along arrows."""
    pairs = set(arrows)
    while True:
        longer = {(a, d) for a, b in pairs for c, d in arrows if b == c} | pairs
        if longer == pairs:
            return pairs
        pairs = longer


def test_the_picture_of_the_packages_is_right():
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text()
    arrows = set(re.findall(r'id="(\w+)-to-(\w+)"', picture))
    needed = {
        (module.split(".")[1], target.split(".")[1])
        for module, targets in imports(PACKAGE).items()
        for target in targets
        if "." in module and "." in target
    }
    needed = {(above, below) for above, below in needed if above != below}
    assert arrows <= needed <= reached(arrows)
    drawn = set(re.findall(r'font-weight="bold">(\w+)<', picture))
    assert drawn == {room for rooms in LAYERS for room in rooms}
