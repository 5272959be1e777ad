"""What the README shows works as written."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in example.splitlines() if line]
    assert len(lines) <= 10
    torch.set_default_dtype(torch.float32)
    exec(example, {})
    printed = capsys.readouterr().out
    assert "tensor(" in printed


def test_examples_of_the_pages_run():
    torch.set_default_dtype(torch.float32)
    for page in sorted((ROOT / "docs").glob("*.md")):
        for example in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            exec(example, {})


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert commands == {"demo", "test"}
    for command in commands | {"lint", "docs", "benchmark"}:
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
