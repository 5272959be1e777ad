"""What the README and the documentation show works as written."""

import re
from pathlib import Path

import pytest
import torch

import pyromix

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
        assert len(lines) <= 10
        torch.set_default_dtype(torch.float32)
        exec(example, {})
        assert "tensor(" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_the_pages_run(page):
    torch.set_default_dtype(torch.float32)
    for example in examples(page.read_text()):
        exec(example, {})


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_everything_public_is_in_the_reference():
    listed = set(re.findall(r"^   (\w+)$", (ROOT / "docs" / "api.rst").read_text(), re.MULTILINE))
    assert listed == set(pyromix.__all__)


def test_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert commands == {"demo", "test"}
    for command in commands | {"lint", "docs", "benchmark"}:
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
