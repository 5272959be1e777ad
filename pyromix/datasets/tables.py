"""Tables of mixed columns, as data frames."""

__all__ = ["adult"]

import importlib
from pathlib import Path
from typing import Any

from .sources import cache_folder, fetch, looked_for, own_folders

_URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult/adult.data"
_FILE = "adult.csv.gz"
_ROWS = 32_561
_COLUMNS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "gender",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
)


def adult() -> Any:
    """The table "Adult" [1]: 32,561 persons of the census of the USA in 1994.

    It is read from ``adult.csv.gz`` in the folder ``tables`` of the folder that the environment
    variable ``PYROMIX_DATA`` names, or from the user's cache, where it is downloaded to at the
    first call.

    Returns:
        A data frame of pandas with 14 columns of numbers and strings, and gaps where they are not
        known. The weight of the survey (``fnlwgt``) is left out.

    Raises:
        FileNotFoundError: If it is nowhere and cannot be downloaded.
        ImportError: If pandas is not installed, or pooch, where a download is needed.

    References:
        [1] Becker and Kohavi, Adult, UCI Machine Learning Repository, 1996.
    """
    try:
        pd = importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError(
            "The table needs pandas: python -m pip install 'pyromix[tables]'"
        ) from error
    options: dict[str, Any] = {"na_values": ["?"], "skipinitialspace": True}
    path = next((f / _FILE for f in own_folders("tables") if (f / _FILE).exists()), None)
    if path is not None:
        frame = pd.read_csv(path, **options)
    else:
        frame = pd.read_csv(_download(), header=None, names=list(_COLUMNS), **options)
    frame = frame[[name for name in _COLUMNS if name != "fnlwgt"]]
    if len(frame) != _ROWS:
        raise ValueError(f"Expected {_ROWS:,} rows in {path or _URL}, got {len(frame):,}.")
    return frame


def _download() -> Path:
    looked = looked_for(f"tables/{_FILE}")
    folder = cache_folder("tables", title="the table Adult", looked=looked)
    if not (folder / "adult.data").exists():
        return fetch(_URL, folder, "adult.data", checksum=None, looked=looked)
    return folder / "adult.data"
