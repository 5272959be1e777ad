"""Modules under the names that they had in version 0.1."""

import importlib
import sys

import pytest

import pyromix
from pyromix.core.renamed import RENAMED


@pytest.mark.parametrize("old", RENAMED)
def test_what_a_module_has_is_found_under_its_old_name(old):
    sys.modules.pop(f"pyromix.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"pyromix.{old} is now"):
        module = importlib.import_module(f"pyromix.{old}")
    for new in RENAMED[old]:
        part = importlib.import_module(f"pyromix.{new}")
        assert part.__all__
        for name in part.__all__:
            assert getattr(module, name) is getattr(part, name)
    with pytest.raises(ImportError):
        exec(f"from pyromix.{old} import no_such_name", {})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("pyromix.core", "DistributionModule"),
        ("pyromix.evidence", "Observed"),
        ("pyromix.mixtures", "ConditionedMixture"),
        ("pyromix.mixtures", "UnionOfConditioned"),
        ("pyromix.mixtures.truncated", "TruncatedNormals"),
        ("pyromix.mixtures.truncated", "feasible_point"),
        ("pyromix.drmm", "ConditionedDRMM"),
        ("pyromix.frmdn", "SequenceLaw"),
        ("pyromix.dcgmm", "ClassLaw"),
        ("pyromix.dcgmm.presets", "PRESETS"),
        ("pyromix.maxent", "MaximumEntropyResult"),
        ("pyromix.maxent.result", "Round"),
        ("pyromix.training", "NonFiniteLossError"),
        ("pyromix.preprocessing", "frames"),
        ("pyromix.testing", "Case"),
        ("pyromix.plotting", "plot_density"),
    ],
)
def test_documented_paths_stay(path, name, recwarn):
    assert hasattr(importlib.import_module(path), name)
    assert not recwarn.list


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pyromix.no_such_module")
    assert callable(pyromix.near_identity)
