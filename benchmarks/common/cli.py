"""Command lines: the options that benchmarks share."""

import argparse
from collections.abc import Iterable

import torch


def make_parser(
    doc: str | None, *, quick: str, paper: str | None = None, threads: bool = True
) -> argparse.ArgumentParser:
    """A parser whose results have a `size`: ``"quick"``, ``"default"`` or ``"paper"``.

    Args:
        doc: The benchmark's description.
        quick: Help of `--quick`.
        paper: Help of `--paper`; None if there is no such size.
        threads: Whether there is an option `--threads`.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = parser.add_mutually_exclusive_group()
    for size, text in (("quick", quick), ("paper", paper)):
        if text is not None:
            sizes.add_argument(
                f"--{size}", dest="size", action="store_const", const=size, help=text
            )
    parser.set_defaults(size="default")
    if threads:
        parser.add_argument("--threads", type=int, default=1, help="of PyTorch; by default one")
    return parser


def add_models(parser: argparse.ArgumentParser, names: Iterable[str], count: str = "all") -> None:
    """Adds `--models`, of which several processes can train some each, and `--report`.

    Args:
        parser: Where to add them.
        names: Of the models.
        count: How many of them are trained by default.
    """
    parser.add_argument(
        "--models", nargs="+", choices=list(names), help=f"to train; by default {count}"
    )
    parser.add_argument("--report", action="store_true", help="train nothing: only print and draw")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed options; PyTorch is limited to the number of threads among them."""
    arguments = parser.parse_args()
    if "threads" in arguments:
        torch.set_num_threads(arguments.threads)
    return arguments
