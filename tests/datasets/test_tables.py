"""Tables are read from the user's folder, or as they are downloaded."""

import pytest

from pyromix.datasets import adult, tables

pd = pytest.importorskip("pandas")

ROW = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, ?, Not-in-family, White, Male, 2174, 0,"
    " 40, United-States, <=50K"
)


@pytest.fixture
def raw(tmp_path):
    """A file as it is downloaded: without names of columns, and with the survey's weight."""
    path = tmp_path / "adult.data"
    path.write_text("\n".join([ROW] * 32_561) + "\n\n")
    return path


def _check(frame):
    assert frame.shape == (32_561, 14)
    assert "fnlwgt" not in frame
    assert frame["occupation"].isna().all()
    assert frame["age"].eq(39).all()
    assert frame["income"].eq("<=50K").all()


def test_adult_from_a_download(raw, monkeypatch):
    monkeypatch.delenv("PYROMIX_DATA", raising=False)
    monkeypatch.setattr(tables, "_download", lambda: raw)
    _check(adult())


def test_adult_from_a_folder(raw, tmp_path, monkeypatch):
    frame = pd.read_csv(raw, header=None, names=list(tables._COLUMNS))
    (tmp_path / "tables").mkdir()
    path = tmp_path / "tables" / "adult.csv.gz"
    frame.drop(columns="fnlwgt").to_csv(path)
    monkeypatch.setenv("PYROMIX_DATA", str(tmp_path))
    _check(adult())
    frame.head(10).drop(columns="fnlwgt").to_csv(path)
    with pytest.raises(ValueError, match="32,561 rows"):
        adult()
