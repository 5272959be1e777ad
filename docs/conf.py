"""Sphinx configuration."""

import pyromix

project = "pyromix"
author = "The pyromix authors"
copyright = "2026, The pyromix authors"
release = pyromix.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "pyromix"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
default_role = "literal"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False
