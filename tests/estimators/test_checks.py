"""The checks of scikit-learn for all estimators."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyromix.sklearn import (
    MixtureAnomalyDetector,
    MixtureClassifier,
    MixtureDensity,
    MixtureImputer,
    MixtureRegressor,
)

# The checks of predictions ask for good ones after little training: many components do that.
PREDICTS = {"num_layers": 1, "num_components": 200, "steps": 8, "members": 1, "shrinkage": 0.1}
QUICK = {"num_layers": 1, "num_components": 8, "steps": 3, "members": 1, "shrinkage": 1.0}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        MixtureClassifier(**PREDICTS),
        MixtureRegressor(**PREDICTS),
        MixtureImputer(**QUICK),
        MixtureDensity(**QUICK),
        MixtureAnomalyDetector(**QUICK),
    ]
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)
