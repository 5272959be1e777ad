"""Conformance checks for distributions: this library's, and your own.

One line per distribution puts it through every check that applies to it::

    from pyromix.testing import Case, parametrize

    @parametrize({"shifted": Case(lambda: Shifted(dim=2))})
    def test_conformance(check, case):
        check(case)

A check raises `AssertionError` with what is wrong. Those that compare samples with densities are
statistical tests at a fixed seed, with thresholds of six standard errors, or a p-value of 1e-8:
a correct distribution fails one in some ten thousand runs.
"""

__all__ = [
    "CHECKS",
    "GOODNESS_OF_FIT",
    "Case",
    "applicable_checks",
    "goodness_of_fit",
    "parametrize",
]

from .cases import CHECKS, Case, applicable_checks, parametrize
from .statistics import GOODNESS_OF_FIT, goodness_of_fit

# isort: off
# Each module adds its checks to CHECKS when it is imported, in this order.
from . import shape_checks  # noqa: F401
from . import law_checks  # noqa: F401
from . import gradient_checks  # noqa: F401
from . import file_checks  # noqa: F401
from . import pyro_checks  # noqa: F401
from . import input_checks  # noqa: F401
