"""Tutorials run, and notebooks are their scripts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyromix.datasets import adult

TUTORIALS = Path(__file__).parent.parent / "tutorials"
SHORTENED = Path(__file__).parent / "run_shortened.py"
SCRIPTS = [p for p in sorted(TUTORIALS.glob("*.py")) if p.name != "make_notebooks.py"]


def script_cells(path):
    """Kind and text of every cell of a script in percent format."""
    body = path.read_text().split("\n# %%")[1:]
    for cell in body:
        header, _, text = cell.partition("\n")
        if "[markdown]" in header:
            lines = [line.removeprefix("#").removeprefix(" ") for line in text.strip().split("\n")]
            yield "markdown", "\n".join(lines)
        else:
            yield "code", text.strip()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_made_from_its_script(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text())
    cells = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    assert cells == list(script_cells(path)), "run `make notebooks`"
    errors = [o for c in notebook["cells"] for o in c.get("outputs", []) if "ename" in o]
    assert not errors
    assert any(c.get("outputs") for c in notebook["cells"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_with_little_training(path, tmp_path):
    check_run([str(SHORTENED), str(path)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs(path, tmp_path):
    check_run([str(path)], tmp_path)


def check_run(arguments, folder):
    """Runs a script in a folder: it ends well, and leaves figures behind."""
    if "ask_a_table" in arguments[-1]:
        try:
            adult()
        except (FileNotFoundError, ImportError) as error:
            pytest.skip(str(error))
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        # Warnings about its data and training name the script's line as their place.
        "PYTHONWARNINGS": "error::UserWarning:__main__",
    }
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(list((folder / "out").glob("*.png"))) >= 3
