"""Spoken digits: read as they were written, found where they may be, verified when downloaded."""

import io
import sys
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from pyromix import datasets
from pyromix.datasets import speech
from pyromix.preprocessing import frames


def recording(samples, channels=1, width=2, rate=8000):
    """A file in the WAV format."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes(np.asarray(samples, "<i2").tobytes())
    return file.getvalue()


SAMPLES = {
    "1_ann_0.wav": [1, -2, 300],
    "0_bob_10.wav": [5, 6, 7, 8],
    "0_bob_9.wav": [-32768, 32767],
    "0_ann_0.wav": [9],
    "9_ann_b_3.wav": [10, 11],
}
FILES = {name: recording(samples) for name, samples in SAMPLES.items()}
IN_ORDER = ["0_ann_0.wav", "0_bob_9.wav", "0_bob_10.wav", "1_ann_0.wav", "9_ann_b_3.wav"]


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for data, beside an empty cache, with no network."""

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("PYROMIX_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("pooch.retrieve", refuse)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "data"


@pytest.mark.parametrize("where", ["fsdd/recordings", "recordings", "."])
def test_files_are_found_and_read(folder, where):
    write(folder / where, FILES | {"readme.txt": b"", "x_ann_0.wav": b"", "0_ann_0.wav.bak": b""})
    data = datasets.spoken_digits()
    assert isinstance(data, datasets.SpokenDigits)
    assert data.speaker_names == ("ann", "ann_b", "bob")
    assert data.digits.tolist() == [0, 0, 0, 1, 9]
    assert data.speakers.tolist() == [0, 2, 2, 0, 1]
    assert data.indices.tolist() == [0, 9, 10, 0, 3]
    assert data.digits.dtype == data.speakers.dtype == data.indices.dtype == torch.int64
    assert data.rate == 8000
    for samples, name in zip(data.waves, IN_ORDER, strict=True):
        assert samples.dtype == torch.get_default_dtype()
        torch.testing.assert_close(samples, torch.tensor(SAMPLES[name]) / 32768)
    assert data.waves[1].min() == -1
    assert data.waves[1].max() < 1


def test_raw_samples_are_integers(folder):
    write(folder, FILES)
    raw = datasets.spoken_digits(raw=True)
    for samples, name in zip(raw.waves, IN_ORDER, strict=True):
        assert samples.dtype == torch.int16
        assert samples.tolist() == SAMPLES[name]
    raw.waves[0][0] = 3  # the memory is the caller's
    values, lengths = frames(raw.waves, 2, drop_last=False)
    assert values.shape == (5, 2, 2)
    assert lengths.tolist() == [1, 1, 2, 2, 1]


def test_speakers_are_chosen(folder):
    write(folder, FILES | {"0_eve_0.wav": b"not read"})
    data = datasets.spoken_digits(["bob", "ann"])
    assert data.speaker_names == ("bob", "ann")
    assert data.speakers.tolist() == [1, 0, 0, 1]
    assert data.digits.tolist() == [0, 0, 0, 1]
    assert datasets.spoken_digits(("ann",)).digits.tolist() == [0, 1]


@pytest.mark.parametrize("speakers", ["bob", ["bob", "zoe"], [], ["bob", "bob"]], ids=str)
def test_unknown_speakers(folder, speakers):
    write(folder, FILES)
    with pytest.raises(ValueError, match=r"different names among ann, ann_b, bob, got "):
        datasets.spoken_digits(speakers)


BROKEN = {
    "empty": (b"", "it ends early"),
    "page": (b"<html>Not found</html>", "Cannot read"),
    "cut": (FILES["1_ann_0.wav"][:-2], "4 bytes of 3 samples"),
    "header": (FILES["1_ann_0.wav"][:30], "Cannot read"),
    "stereo": (recording([1, 2], channels=2), "got 2 of 2 at 8000 Hz"),
    "bytes": (recording([1, 2], width=1), "got 1 of 1 at 8000 Hz"),
    "rate": (recording([1, 2], rate=16_000), "got 1 of 2 at 16000 Hz"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(folder, case):
    content, match = BROKEN[case]
    write(folder, FILES | {"1_ann_0.wav": content})
    with pytest.raises(ValueError, match=match) as caught:
        datasets.spoken_digits()
    assert str(folder / "1_ann_0.wav") in str(caught.value)
    assert "Replace it by" in str(caught.value)


# --- downloads ---

KNOWN = {
    f"{d}_{name}_{i}.wav": recording([d, i]) for d in (0, 7) for name in ("theo",) for i in (1, 49)
}


def archive(path, files):
    with tarfile.open(path, "w:gz") as file:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def mirror(folder, monkeypatch):
    """Serves an archive of files; its recordings are the known ones if they have the digest."""
    asked = []

    def serve(files, *, digest_of=KNOWN):
        def retrieve(url, known_hash, fname, path):
            asked.append(url)
            return str(archive(Path(path) / fname, files))

        monkeypatch.setattr("pooch.retrieve", retrieve)
        monkeypatch.setattr(speech, "_SHA256", speech._digest(digest_of))
        return asked

    return serve


def released(files):
    return {f"free-spoken-digit-dataset-1.0.10/recordings/{n}": c for n, c in files.items()}


def test_release_is_downloaded_to_the_cache(folder, mirror):
    others = {
        "recordings/0_zoe_1.wav": b"a speaker of a later release",
        "a/recordings/0_theo_50.wav": b"a recording of a later release",
        "a/old/0_theo_1.wav": b"elsewhere",
        "../../recordings/escape.wav": b"",
        "a/README.md": b"",
    }
    asked = mirror(released(KNOWN) | others)
    data = datasets.spoken_digits(raw=True)
    assert asked == [speech._ARCHIVE]
    assert [samples.tolist() for samples in data.waves] == [[0, 1], [0, 49], [7, 1], [7, 49]]
    cache = folder.parent / "cache" / "pyromix" / "fsdd"
    assert [path.name for path in cache.iterdir()] == ["recordings"]  # nothing is left behind
    assert {p.name: p.read_bytes() for p in (cache / "recordings").iterdir()} == KNOWN
    assert len(datasets.spoken_digits().waves) == 4
    assert len(asked) == 1
    # One's own folder comes first.
    write(folder, FILES)
    assert datasets.spoken_digits().speaker_names == ("ann", "ann_b", "bob")


CHANGED = {
    "content": KNOWN | {"7_theo_1.wav": recording([7, 2])},
    "missing": {name: KNOWN[name] for name in list(KNOWN)[1:]},
    "more": KNOWN | {"3_theo_0.wav": recording([3])},
    "swapped": KNOWN
    | {"0_theo_1.wav": KNOWN["7_theo_1.wav"], "7_theo_1.wav": KNOWN["0_theo_1.wav"]},
    "none": {},
}


@pytest.mark.parametrize("case", CHANGED)
def test_other_contents_are_refused(folder, mirror, case):
    mirror(released(CHANGED[case]))
    with pytest.raises(ValueError, match=r"3000 recordings of release 1\.0\.10.*PYROMIX_DATA"):
        datasets.spoken_digits()
    assert not (folder.parent / "cache").exists()
    mirror(released(KNOWN))  # and a better download is not in the way of a bad one
    assert len(datasets.spoken_digits().waves) == 4


def test_archive_that_is_none(folder, mirror, monkeypatch):
    mirror({})

    def page(url, known_hash, fname, path):
        target = Path(path) / fname
        target.write_bytes(b"<html>Not found</html>")
        return str(target)

    monkeypatch.setattr("pooch.retrieve", page)
    with pytest.raises(ValueError, match=r"Cannot unpack what https://github\.com"):
        datasets.spoken_digits()


def test_another_process_may_be_faster(folder, mirror, monkeypatch):
    mirror(released(KNOWN))
    rename = Path.rename

    def late(self, target):
        write(target, KNOWN)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert len(datasets.spoken_digits().waves) == 4


def test_missing_data_and_no_network(folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match="ConnectionError") as caught:
        datasets.spoken_digits()
    assert str(folder) in str(caught.value)
    assert "PYROMIX_DATA" in str(caught.value)
    monkeypatch.delenv("PYROMIX_DATA")
    with pytest.raises(FileNotFoundError, match="PYROMIX_DATA names no folder"):
        datasets.spoken_digits()
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"spoken digits takes pooch.*pyromix\[datasets\]"):
        datasets.spoken_digits()


# --- the real ones ---


@pytest.mark.skipif(
    speech._find() is None or len(speech._recordings(speech._find())) != 3000,
    reason="PYROMIX_DATA has no spoken digits",
)
def test_the_real_recordings():
    folder = speech._find()
    assert speech._digest({p.name: p.read_bytes() for *_, p in speech._recordings(folder)}) == (
        speech._SHA256
    )
    data = datasets.spoken_digits()
    assert data.speaker_names == speech._SPEAKERS
    assert data.digits.bincount().tolist() == [300] * 10
    assert data.speakers.bincount().tolist() == [500] * 6
    assert data.indices.bincount().tolist() == [60] * 50
    lengths = torch.tensor([len(samples) for samples in data.waves])
    assert (lengths.min(), lengths.max(), lengths.sum()) == (1148, 18_262, 10_498_424)
    assert all(samples.abs().max() <= 1 for samples in data.waves)
    values, counts = frames(data.waves, 200)
    assert values.shape == (3000, 91, 200)
    assert torch.equal(counts, lengths // 200)
