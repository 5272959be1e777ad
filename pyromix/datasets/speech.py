"""Recordings of spoken digits, as tensors."""

__all__ = ["SpokenDigits", "spoken_digits"]

import hashlib
import re
import tarfile
import tempfile
import wave
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .sources import cache_folder, fetch, looked_for, own_folders

_RATE = 8000  # in Hz
_FULL_SCALE = 2**15  # of 16 bits with a sign

_ARCHIVE = (
    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
)
_SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")  # of this release
_NAME = re.compile(r"([0-9])_(.+)_([0-9]+)\.wav")  # digit, speaker, index

# Of the 3,000 recordings, not of the archive that they come in: GitHub packs archives when they
# are asked for, and their bytes have changed with its version of gzip.
_SHA256 = "53998afdef6c8d68266bf9ceb651f330a685545f8d0f5334b9e3cd60f5998d76"


class SpokenDigits(NamedTuple):
    """Recordings of different lengths and who says what in them, from `spoken_digits`."""

    waves: list[Tensor]
    """Of one dimension each; `pyromix.preprocessing.frames` makes a padded batch of them."""

    digits: Tensor
    """What is said, from 0 to 9: shape (N,) and dtype int64."""

    speakers: Tensor
    """Who says it, as index into ``speaker_names``: shape (N,) and dtype int64."""

    indices: Tensor
    """Numbers of the recordings among those of the same digit and speaker: shape (N,) and dtype
    int64. The authors of the data set keep 0 to 4 of each for tests."""

    speaker_names: tuple[str, ...]
    """Names of the speakers."""

    rate: int
    """Samples per second."""


def spoken_digits(speakers: Sequence[str] | None = None, *, raw: bool = False) -> SpokenDigits:
    """The Free Spoken Digit Dataset [1]: English digits, 50 times each by six speakers.

    These are 3,000 recordings at 8 kHz of 0.14 to 2.3 seconds, trimmed so that they begin and end
    with little silence, in order of digit, speaker and index.

    Files named such as ``7_jackson_32.wav`` are looked for in the subfolders ``fsdd/recordings``
    and ``recordings`` of the folder that the environment variable ``PYROMIX_DATA`` names, and in
    that folder itself, then in the user's cache. If they are nowhere, release 1.0.10 is
    downloaded to the cache, for which pooch must be installed. The data set grows: a folder of
    one's own may hold another release, with more speakers or recordings, and all are returned.

    Args:
        speakers: Names of the speakers to return, all by default: george, jackson, lucas,
            nicolas, theo and yweweler. To hold out a speaker, or to study one voice.
        raw: Whether to return samples as they were recorded, as integers of dtype int16 from
            -32768 to 32767, instead of numbers of torch's default dtype in [-1, 1).

    Returns:
        Recordings with digits and speakers; speakers are numbered in the order of the argument,
        or else of the alphabet.

    Raises:
        ValueError: If there is no such speaker, or a file is not what its name says.
        FileNotFoundError: If the files are nowhere, and cannot be downloaded.
        ImportError: If they would have to be downloaded, and pooch is not installed.

    Example:
        >>> from pyromix.preprocessing import frames
        >>> recordings = spoken_digits(["theo", "lucas"])  # doctest: +SKIP
        >>> values, lengths = frames(recordings.waves, 200)  # doctest: +SKIP

    References:
        [1] Jackson, Souza, Flaks, Pan, Nicolas and Thite, "Jakobovski/free-spoken-digit-dataset",
        2018. https://github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0)
    """
    files = sorted(_recordings(_find() or _download()))
    names = _choose(speakers, sorted({speaker for _, speaker, _, _ in files}))
    files = [file for file in files if file[1] in names]
    waves = [_read_wave(path) for *_, path in files]
    if not raw:
        dtype = torch.get_default_dtype()
        waves = [samples.to(dtype) / _FULL_SCALE for samples in waves]
    return SpokenDigits(
        waves,
        torch.tensor([digit for digit, *_ in files]),
        torch.tensor([names.index(speaker) for _, speaker, _, _ in files]),
        torch.tensor([index for _, _, index, _ in files]),
        names,
        _RATE,
    )


def _recordings(folder: Path) -> list[tuple[int, str, int, Path]]:
    """Digit, speaker, index and path of the recordings in a folder, if there is one."""
    paths = folder.iterdir() if folder.is_dir() else ()
    matches = ((_NAME.fullmatch(path.name), path) for path in paths)
    return [(int(m[1]), m[2], int(m[3]), path) for m, path in matches if m]


def _choose(speakers: Sequence[str] | None, known: list[str]) -> tuple[str, ...]:
    if speakers is None:
        return tuple(known)
    names = () if isinstance(speakers, str) else tuple(speakers)
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise ValueError(
            f"Expected speakers to be a sequence of different names among "
            f"{', '.join(known)}, got {speakers!r}."
        )
    return names


def _find() -> Path | None:
    """The first folder of the user's own that holds recordings."""
    for folder in own_folders("fsdd/recordings", "recordings"):
        if _recordings(folder):
            return folder
    return None


def _download() -> Path:
    """The recordings in the cache, fetched from GitHub at the first call."""
    looked = looked_for("a recording such as 7_jackson_32.wav")
    cache = cache_folder("fsdd", title="the spoken digits", looked=looked)
    folder = cache / "recordings"
    if _recordings(folder):
        return folder
    # The cache gets a complete and verified folder in one move, or none.
    with tempfile.TemporaryDirectory() as temporary:
        archive = fetch(_ARCHIVE, Path(temporary), "fsdd.tar.gz", checksum=None, looked=looked)
        contents = _unpack(archive)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        unpacked = Path(temporary) / "recordings"
        unpacked.mkdir()
        for name, content in contents.items():
            (unpacked / name).write_bytes(content)
        try:
            unpacked.rename(folder)
        except OSError:
            if not _recordings(folder):  # else another process was faster
                raise
    return folder


def _unpack(archive: Path) -> dict[str, bytes]:
    """The contents of the recordings in the archive, by name."""
    expected = {f"{d}_{name}_{i}.wav" for d in range(10) for name in _SPEAKERS for i in range(50)}
    contents = {}
    try:
        with tarfile.open(archive) as file:
            for member in file:
                path = PurePosixPath(member.name)
                if path.parent.name == "recordings" and path.name in expected:
                    content = file.extractfile(member)
                    contents[path.name] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"Cannot unpack what {_ARCHIVE} sent ({error}). Try again.") from error
    if _digest(contents) != _SHA256:
        raise ValueError(
            f"Expected the {len(expected)} recordings of release 1.0.10 in {_ARCHIVE}, got "
            f"{len(contents)} files of these names with other contents. Get the recordings some "
            f"other way, and set PYROMIX_DATA to their folder."
        )
    return contents


def _digest(contents: dict[str, bytes]) -> str:
    """SHA-256 over names and contents in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(contents):
        # Lengths of both are fixed by a hash, so that no byte can move from one to the other.
        total.update(hashlib.sha256(name.encode()).digest())
        total.update(hashlib.sha256(contents[name]).digest())
    return total.hexdigest()


def _read_wave(path: Path) -> Tensor:
    """The samples of a file, 16 bits each."""
    try:
        with wave.open(str(path)) as file:
            form = file.getnchannels(), file.getsampwidth(), file.getframerate()
            count = file.getnframes()
            content = file.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"Cannot read {path} ({str(error) or 'it ends early'}). Replace it by the one in "
            f"{_ARCHIVE}."
        ) from error
    if form != (1, 2, _RATE) or len(content) != 2 * count:
        raise ValueError(
            f"Expected {path} to hold one channel of 2 bytes a sample at {_RATE} Hz, got "
            f"{form[0]} of {form[1]} at {form[2]} Hz, and {len(content)} bytes of {count} "
            f"samples. Replace it by the one in {_ARCHIVE}."
        )
    return torch.from_numpy(np.frombuffer(content, "<i2").astype(np.int16))
