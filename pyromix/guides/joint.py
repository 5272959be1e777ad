"""The density of a model's latent variables as an automatic guide sees them: one real vector."""

__all__ = [
    "UnconstrainedJoint",
    "check_sites",
    "in_plate",
    "is_enumerated",
    "latent_names",
    "log_density",
    "paired_traces",
    "plate_depth",
    "subsampled",
]

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.ops.contract import contract_to_tensor
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

# Name of the plate of draws.
DRAWS = "_draws"


def plate_depth(trace: Any) -> int:
    """How many dimensions plates take up, from the right, at the sites of a trace."""
    dims = [
        frame.dim
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return -min(dims, default=0)


def paired_traces(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    nesting: int | None = None,
) -> tuple[Trace, Trace]:
    """A trace of a model, and the one of its guide whose values it has.

    Args:
        model: The model.
        guide: The guide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
        nesting: How many dimensions plates take up. Left of them the model's discrete variables
            are enumerated that ask for it; None for draws of these.
    """
    guided = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guided)
    if nesting is not None:
        replayed = poutine.enum(replayed, first_available_dim=-1 - nesting)
    return poutine.trace(replayed).get_trace(*args, **kwargs), guided


def in_plate(fn: Callable[..., Any], count: int | None, depth: int) -> Callable[..., Any]:
    """A model or guide with a plate of draws left of all others; as it is for None."""
    if count is None:
        return fn
    wrapped: Callable[..., Any] = pyro.plate(DRAWS, count, dim=-1 - depth)(fn)
    return wrapped


def is_enumerated(site: Any) -> bool:
    """Whether a site asks for all of its values at once."""
    return (site["infer"] or {}).get("enumerate") == "parallel"


def latent_names(trace: Any) -> list[str]:
    """Names of the latent variables of a trace, but for those that are enumerated."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site_is_subsample(site)
        and not (site["infer"] or {}).get("is_auxiliary")
        and not is_enumerated(site)
    ]


def subsampled(trace: Any) -> list[str]:
    """Names of the plates of a trace of which some rows alone are drawn."""
    return [
        name
        for name, site in trace.nodes.items()
        if site_is_subsample(site) and site["fn"].subsample_size not in (None, site["fn"].size)
    ]


def check_sites(model: Any, guide: Any) -> None:
    """Checks that traces of a model and its guide have the same latent variables.

    Raises:
        ValueError: If they have not.
        NotImplementedError: If the guide enumerates some.
    """
    for trace, where in ((model, "model"), (guide, "guide")):
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            how = (site["infer"] or {}).get("enumerate")
            if how == "sequential" or (how and where == "guide"):
                raise NotImplementedError(
                    f"Not available: site {name!r} of the {where} is enumerated ({how!r}). "
                    f"Enumerate sites of the model alone, by infer={{'enumerate': 'parallel'}}, "
                    f"or use Pyro's TraceEnum_ELBO."
                )
    of_model, of_guide = set(latent_names(model)), set(latent_names(guide))
    if of_model != of_guide:
        raise ValueError(
            f"Expected a guide of the same latent variables as the model, got "
            f"{sorted(of_guide - of_model)} in the guide alone, and "
            f"{sorted(of_model - of_guide)} in the model alone."
        )


def log_density(trace: Any, count: int | None, depth: int) -> Tensor:
    """Sums of the log-densities of the sites of a trace.

    Args:
        trace: The trace.
        count: How many draws it holds, in the dimension left of all plates; None for one draw
            without such a dimension.
        depth: Number of dimensions of plates.

    Returns:
        Tensor of shape (count,), or a number.

    Raises:
        ValueError: If a site has dimensions left of the draws: the model does not broadcast.
    """
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    if any((site["infer"] or {}).get("_enumerate_dim") is not None for site in sites.values()):
        return _summed_log_density(trace, sites, count)
    total = torch.zeros(())
    for name, site in sites.items():
        own = site["log_prob"]
        if count is None:
            own = own.sum()
        elif own.dim() > depth + 1 or (own.dim() > depth and own.shape[0] not in (1, count)):
            raise ValueError(
                f"Expected site {name!r} to have log-densities of at most {depth + 1} dimensions, "
                f"{count} draws on the left, got shape {tuple(own.shape)}: the model does not "
                f"broadcast over a plate of draws. Index and sum from the right, as in z[..., 0] "
                f"and (z * x).sum(-1), or run draws one by one: vectorize_particles=False of "
                f"StratifiedELBO, vectorize=False of fit_guide."
            )
        elif own.dim() > depth and own.shape[0] == count:
            own = own.reshape(count, -1).sum(1)
        else:  # the same for all draws
            own = own.sum()
        total = total + own
    return total


def _summed_log_density(trace: Any, sites: Mapping[str, Any], count: int | None) -> Tensor:
    """Log-densities (n,), or a number, with sums over what is enumerated.

    Args:
        trace: The trace, with log-densities.
        sites: Its sites.
        count: How many draws it holds; None for one without a dimension.
    """
    trace.pack_tensors()
    draws = frozenset() if count is None else frozenset({trace.plate_to_symbol[DRAWS]})
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    enumerated = set()
    for name, site in sites.items():
        if "_enumerate_symbol" in site["infer"]:
            enumerated.add(site["infer"]["_enumerate_symbol"])
        plates = frozenset(
            trace.plate_to_symbol[frame.name]
            for frame in site["cond_indep_stack"]
            if frame.vectorized
        )
        factors.setdefault(plates, []).append(site["packed"]["log_prob"])
        dims = set(site["packed"]["log_prob"]._pyro_dims)
        if not dims.isdisjoint(enumerated) and site["scale"] != 1:
            raise NotImplementedError(
                f"Not available: the log-density of site {name!r} is scaled by {site['scale']}, "
                f"as by a subsample, and depends on variables that are enumerated. Use Pyro's "
                f"TraceEnum_ELBO."
            )
    total = contract_to_tensor(factors, enumerated, target_ordinal=draws)
    return total if count is None else total.expand(count)


class UnconstrainedJoint:
    """Log-densities of a model with its data, over all latent variables as one real vector.

    Args:
        model: The model.
        guide: A guide of it that has been run once: it tells sites and their order.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        vectorize: Whether the model takes many values at once, in a plate of its own; else it is
            run once for each.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AutoContinuous,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        vectorize: bool = True,
    ) -> None:
        self.model, self.guide = model, guide
        self.args, self.kwargs = args, dict(kwargs or {})
        self.vectorize = vectorize
        # The guide knows plates of latent variables alone; data may be in others.
        with torch.no_grad(), poutine.block():
            self.depth = plate_depth(poutine.trace(model).get_trace(*args, **self.kwargs))

    def __call__(self, z: Tensor) -> Tensor:
        """Log-densities (n,) of vectors (n, D), in units of these."""
        if not self.vectorize:
            return torch.stack([self._run(one, None) for one in z])
        return self._run(z.reshape(len(z), *[1] * self.depth, z.shape[-1]), len(z))

    def _run(self, z: Tensor, count: int | None) -> Tensor:
        latent = f"_{self.guide._pyro_name}_latent"
        guide = in_plate(poutine.condition(self.guide, {latent: z}), count, self.depth)
        model = in_plate(self.model, count, self.depth)
        nesting = self.depth + (count is not None)
        traced, guided = paired_traces(model, guide, self.args, self.kwargs, nesting=nesting)
        guided.remove_node(latent)  # what is left is the Jacobian of constraints
        return log_density(traced, count, self.depth) - log_density(guided, count, self.depth)
