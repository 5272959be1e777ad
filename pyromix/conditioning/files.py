"""Files of laws given evidence."""

__all__ = ["load_law"]

import torch

from ..checkpoints import PathLike, check_device, read_tree
from .law import ConditionedLaw, Start, condition_from
from .parts import as_part


def load_law(path: PathLike, *, device: str | torch.device = "cpu") -> ConditionedLaw:
    """Loads a law given evidence that `save` wrote.

    The law is made anew, from the law without evidence, the evidence, and the random numbers that
    it was made from: it is the same, to the last bit on the same kind of machine. What is worked
    out of these, such as a population of codes, is no part of the file.

    Args:
        path: The file.
        device: Where to put the law. Its dtype is the saved one.

    Returns:
        The law, without a graph.

    Raises:
        ValueError: If the file holds no such law, or is of a later format.
        FileNotFoundError: If there is no such file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from pyromix import Box, GaussianMixture, save
        >>> law = GaussianMixture(dim=2, num_components=3).condition(Box(0.0, 1.0))
        >>> with TemporaryDirectory() as folder:
        ...     save(law, f"{folder}/law.safetensors")
        ...     copy = load_law(f"{folder}/law.safetensors")
        >>> torch.equal(copy.log_evidence()[0], law.log_evidence()[0])
        True
    """
    tree, target = read_tree(path, "law"), check_device(device)
    try:
        prior, evidence = as_part(tree["prior"], target), as_part(tree["evidence"], target)
        start: Start = tuple((str(name), state) for name, state in tree["start"])
        if not hasattr(prior, "condition_on") or not all(state.dim() for _, state in start):
            raise TypeError(f"Expected a law that takes evidence, got {type(prior).__name__}.")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not describe a law given evidence: {error}") from error
    return condition_from(prior, evidence, start)
