"""Small images of digits and clothes, as tensors."""

__all__ = ["digits", "fashion_mnist", "mnist"]

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .sources import INSTALL, cache_folder, fetch, looked_for, own_folders


@dataclass(frozen=True)
class _Source:
    """Files in the format of MNIST: of each split the images, then the labels."""

    title: str
    subfolders: tuple[str, ...]
    """Where to look in the user's own folder; the last is the name of the one in the cache."""
    whole_folder: bool
    """Whether to look in that folder itself, too: names of files are the same for all."""
    mirror: str
    checksums: dict[str, tuple[str, str]]


_NAMES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}

_MNIST = _Source(
    title="MNIST",
    subfolders=("mnist",),
    whole_folder=True,
    mirror="https://ossci-datasets.s3.amazonaws.com/mnist/",
    checksums={
        "train": (
            "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        "test": (
            "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    },
)

_FASHION = _Source(
    title="FashionMNIST",
    subfolders=("FashionMNIST/raw", "fashion-mnist"),
    whole_folder=False,
    mirror="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    checksums={  # as published: there are no others
        "train": ("md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d", "md5:25c81989df183df01b3e8a0aad5dffbe"),
        "test": ("md5:bef4ecab320f06d8554ea6380940ec79", "md5:bb300cfdad3c16e7a12a480ee83cd310"),
    },
)


def mnist(split: str = "train", *, raw: bool = False) -> tuple[Tensor, Tensor]:
    """The MNIST images of handwritten digits, 60,000 for training and 10,000 for tests.

    The files, named such as ``t10k-images-idx3-ubyte.gz``, are looked for in the folder that the
    environment variable ``PYROMIX_DATA`` names and in its subfolder ``mnist``, unpacked or not,
    then in the user's cache. What is in neither is downloaded to the cache, for which pooch must
    be installed.

    Args:
        split: ``"train"`` or ``"test"``.
        raw: Whether to return images as bytes, from 0 to 255, instead of numbers of torch's
            default dtype from 0 to 1.

    Returns:
        Images of shape (N, 1, 28, 28), and labels from 0 to 9 of shape (N,) and dtype int64.

    Raises:
        ValueError: If there is no such split, or a file is not what its name says.
        FileNotFoundError: If the files are nowhere, and cannot be downloaded.
        ImportError: If they would have to be downloaded, and pooch is not installed.

    Example:
        >>> images, labels = mnist("test")  # doctest: +SKIP
    """
    return _load(_MNIST, split, raw)


def fashion_mnist(split: str = "train", *, raw: bool = False) -> tuple[Tensor, Tensor]:
    """The FashionMNIST images of clothes, 60,000 for training and 10,000 for tests.

    The files have the names of MNIST's. They are looked for in the subfolders ``fashion-mnist``
    and ``FashionMNIST/raw`` of the folder that the environment variable ``PYROMIX_DATA`` names,
    unpacked or not, then in the user's cache. What is in neither is downloaded to the cache, for
    which pooch must be installed.

    Args:
        split: ``"train"`` or ``"test"``.
        raw: Whether to return images as bytes, from 0 to 255, instead of numbers of torch's
            default dtype from 0 to 1.

    Returns:
        Images of shape (N, 1, 28, 28), and labels from 0 to 9 of shape (N,) and dtype int64.

    Raises:
        ValueError: If there is no such split, or a file is not what its name says.
        FileNotFoundError: If the files are nowhere, and cannot be downloaded.
        ImportError: If they would have to be downloaded, and pooch is not installed.

    Example:
        >>> images, labels = fashion_mnist("test")  # doctest: +SKIP
    """
    return _load(_FASHION, split, raw)


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 images of handwritten digits that come with scikit-learn, 8 pixels a side.

    Returns:
        Images from 0 to 1 in 16 steps, of shape (1797, 1, 8, 8) and torch's default dtype, and
        labels from 0 to 9 of shape (1797,) and dtype int64.

    Raises:
        ImportError: If scikit-learn is not installed.

    Example:
        >>> images, labels = digits()
        >>> images.shape
        torch.Size([1797, 1, 8, 8])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(f"The digits come with scikit-learn. {INSTALL}.") from error
    images, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(images, dtype=torch.get_default_dtype()).reshape(-1, 1, 8, 8)
    return images / 16, torch.as_tensor(labels, dtype=torch.int64)


def _load(source: _Source, split: str, raw: bool) -> tuple[Tensor, Tensor]:
    """Images and labels of a split."""
    if split not in _NAMES:
        raise ValueError(f"Expected split to be 'train' or 'test', got {split!r}.")
    paths = [
        _find(source, name) or _download(source, name, checksum)
        for name, checksum in zip(_NAMES[split], source.checksums[split], strict=True)
    ]
    images, labels = (
        _read_idx(path, ndim, source.mirror) for path, ndim in zip(paths, (3, 1), strict=True)
    )
    if len(images) != len(labels):
        raise ValueError(
            f"Expected as many images as labels, got {len(images)} images in {paths[0]} and "
            f"{len(labels)} labels in {paths[1]}. Replace both by files from {source.mirror}."
        )
    images = images[:, None]
    return images if raw else images.to(torch.get_default_dtype()) / 255, labels.long()


def _find(source: _Source, name: str) -> Path | None:
    """A file in the user's own folder."""
    folders = own_folders(*source.subfolders)
    for parent in folders if source.whole_folder else folders[:-1]:
        for candidate in (parent / name, (parent / name).with_suffix("")):
            if candidate.is_file():
                return candidate
    return None


def _download(source: _Source, name: str, checksum: str) -> Path:
    """A file in the cache, fetched from the mirror at the first call."""
    looked = looked_for(name if source.whole_folder else f"{source.subfolders[-1]}/{name}")
    folder = cache_folder(source.subfolders[-1], title=source.title, looked=looked)
    return fetch(source.mirror + name, folder, name, checksum=checksum, looked=looked)


def _read_idx(path: Path, ndim: int, mirror: str) -> Tensor:
    """Bytes in the IDX format: two zeros, the type 8, the number of dimensions, sizes, data."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"Cannot unpack {path} ({error}). Replace it by the file from {mirror}."
            ) from error
    start = 4 + 4 * ndim
    shape = np.frombuffer(content[4:start].ljust(4 * ndim, b"\0"), dtype=">i4").astype(np.int64)
    if content[:4] != bytes([0, 0, 8, ndim]) or len(content) != start + shape.prod():
        raise ValueError(
            f"Expected {path} to hold bytes in {ndim} dimension(s) in the IDX format, got "
            f"{len(content)} bytes that begin with {content[:4].hex(' ')!r}. "
            f"Replace it by the file from {mirror}."
        )
    # A copy, since the bytes of a file are read-only.
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
