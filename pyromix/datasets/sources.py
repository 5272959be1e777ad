"""Where files of data sets are: in the user's own folder, in the cache, or on a mirror."""

__all__ = ["INSTALL", "VARIABLE", "cache_folder", "fetch", "looked_for", "own_folders"]

import os
from pathlib import Path

VARIABLE = "PYROMIX_DATA"
INSTALL = 'Install it with `pip install "pyromix[datasets]"`'


def own_folders(*subfolders: str) -> list[Path]:
    """Subfolders of the folder that the environment variable names, then that folder itself."""
    folder = os.environ.get(VARIABLE)
    return [*(Path(folder) / name for name in subfolders), Path(folder)] if folder else []


def looked_for(name: str) -> str:
    """Where something was looked for in vain, as the end of a sentence."""
    folder = os.environ.get(VARIABLE)
    if folder:
        return f"{name} is not in the folder {folder} that {VARIABLE} names"
    return f"the environment variable {VARIABLE} names no folder to look for {name} in"


def cache_folder(name: str, *, title: str, looked: str) -> Path:
    """The folder of a data set in the user's cache.

    Args:
        name: Of the folder.
        title: Of the data set.
        looked: Where else was looked, from `looked_for`.

    Raises:
        ImportError: If pooch, which knows where caches are, is not installed.
    """
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"To download {title} takes pooch, and {looked}. {INSTALL}, or set {VARIABLE}."
        ) from error
    return Path(pooch.os_cache("pyromix")) / name


def fetch(url: str, folder: Path, name: str, *, checksum: str | None, looked: str) -> Path:
    """A file in a folder, downloaded unless it is there.

    Args:
        url: Where to get it.
        folder: Where to keep it.
        name: What to call it there.
        checksum: Of the file, as ``"algorithm:digest"``; None if something else is verified
            afterwards.
        looked: Where else was looked, from `looked_for`.

    Raises:
        FileNotFoundError: If it cannot be downloaded.
    """
    import pooch

    try:
        return Path(pooch.retrieve(url, known_hash=checksum, fname=name, path=folder))
    except OSError as error:  # includes everything that can be wrong with a connection
        raise FileNotFoundError(
            f"Cannot download {url} ({type(error).__name__}), and {looked}. Get the data some "
            f"other way, put them into a folder, and set {VARIABLE} to that folder."
        ) from error
