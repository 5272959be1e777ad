"""Warnings name the line outside of the package."""

import pytest

import pyromix.core.advice as advice
from pyromix.core.advice import warn_user


def test_a_warning_names_the_line_that_called_the_package(monkeypatch):
    with pytest.warns(FutureWarning, match="later") as caught:
        warn_user("later", FutureWarning)
    assert caught[0].filename == __file__
    # Where everything is of the package, it is the outermost line.
    monkeypatch.setattr(advice, "PACKAGE", "")
    with pytest.warns(UserWarning, match="now") as caught:
        warn_user("now")
    assert caught[0].filename != __file__
