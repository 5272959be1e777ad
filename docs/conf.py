"""Sphinx configuration."""

import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.ext.napoleon import GoogleDocstring

import pyromix

project = "pyromix"
author = "The pyromix authors"
copyright = "2026, The pyromix authors"
release = pyromix.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "pyromix"
exclude_patterns = ["_build"]
templates_path = ["_templates"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to sections of other pages
nb_execution_mode = "off"  # notebooks are stored with their outputs, see tutorials/
default_role = "py:obj"  # a link where it names something with a page, else a literal

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # a member without words of its own is not shown
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    # Members of private bases are shown with each class. Not so those of these bases, which are
    # described elsewhere; autodoc wants every class that defines some, not only the last.
    "inherited-members": ", ".join(
        [
            "DistributionModule",
            "Distribution",
            "TorchDistribution",
            "TorchDistributionMixin",
            "TransformedDistribution",
            "Module",
            "BaseException",
            "object",
        ]
    ),
    # What parts of the library ask of each other.
    "exclude-members": "add_to, draw, frame, log_joint, log_normalizer",
}
napoleon_use_rtype = False

HERE = Path(__file__).parent


def make_folders(_app: Sphinx, _config: Config) -> None:
    """Empties the folders of generated pages, and copies the notebooks into one.

    Pages of what is gone would otherwise stay, and be built.
    """
    for name in ("api", "tutorials"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    (HERE / "tutorials").mkdir()
    for notebook in (HERE.parent / "tutorials").glob("*.ipynb"):
        shutil.copy2(notebook, HERE / "tutorials")


def parse_attribute(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Reads the docstring of a property or an attribute as that of a method.

    Napoleon would take what stands before a colon in its first line for a type, and leave the
    sections below unread.
    """
    if what in ("attribute", "property"):
        parsed = GoogleDocstring(lines, app.config, app, "method", name, obj, options)
        # It looks for the type in the first line: here an empty comment.
        lines[:] = ["..", "", *parsed.lines()]


def leave_out(
    _app: Sphinx, _what: str, _name: str, obj: object, _skip: bool, _options: object
) -> bool | None:
    """Leaves out what scikit-learn gives its estimators, and describes itself."""
    inherited = str(getattr(obj, "__module__", "")).startswith("sklearn.")
    return True if inherited else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", leave_out)
    app.connect("config-inited", make_folders)
    app.connect("autodoc-process-docstring", parse_attribute, priority=400)  # before napoleon
