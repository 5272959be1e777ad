"""Estimators for scikit-learn on top of `pyromix.tables.TableModel`."""

__all__ = [
    "MixtureAnomalyDetector",
    "MixtureClassifier",
    "MixtureDensity",
    "MixtureEstimator",
    "MixtureImputer",
    "MixtureRegressor",
]

try:
    from .anomaly_detector import MixtureAnomalyDetector
    from .base import MixtureEstimator
    from .classifier import MixtureClassifier
    from .density import MixtureDensity
    from .imputer import MixtureImputer
    from .regressor import MixtureRegressor
except ImportError as error:
    if (error.name or "").partition(".")[0] not in {"sklearn", "narwhals", "pandas"}:
        raise
    raise ImportError(
        "Expected scikit-learn 1.6 or later, pandas and narwhals to be installed, which "
        "pyromix.sklearn needs: python -m pip install 'pyromix[sklearn]'"
    ) from error
