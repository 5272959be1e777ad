"""Makes an executed notebook of every tutorial script in this folder.

The scripts are the source; notebooks are never edited. Run from anywhere:

    python tutorials/make_notebooks.py
"""

import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def last_frame(text: str) -> str:
    """What a terminal shows in the end of a text in which carriage returns redraw a line."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def merge_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """One output per stream and cell, in which progress bars have arrived at their end."""
    streams: dict[str, nbformat.NotebookNode] = {}
    merged = []
    for output in outputs:
        if output.output_type != "stream":
            merged.append(output)
        elif output.name in streams:
            streams[output.name].text += output.text
        else:
            streams[output.name] = output
            merged.append(output)
    for stream in streams.values():
        stream.text = last_frame(stream.text)
    return merged


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Removes what differs between runs or says nothing to a reader."""
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = merge_streams(cell.outputs)


def main() -> None:
    """Converts, executes and tidies all scripts, in the folder above this one."""
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # bars are text here, as in a terminal
    for script in sorted(HERE.glob("*.py")):
        if script.name == Path(__file__).name:
            continue
        notebook = jupytext.read(script)
        NotebookClient(notebook, resources={"metadata": {"path": HERE.parent}}).execute()
        tidy(notebook)
        nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(f"wrote {script.with_suffix('.ipynb').name}")


if __name__ == "__main__":
    main()
