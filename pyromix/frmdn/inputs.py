"""Inputs of a model of sequences: contexts of steps, and of whole sequences."""

__all__ = ["Inputs"]

from typing import Any

import torch
from torch import Tensor, nn

from ..core.conversions import as_context, as_rows
from ..core.standardize import Standardize
from .checks import check_finite, common_shape, within
from .recurrence import Recurrence


class Inputs(nn.Module):
    """Standardises contexts, and encodes those of steps if there is an encoder.

    Args:
        context_dim: Entries of the context of a step, zero for none.
        static_dim: Entries of the context of a sequence, zero for none.
        encoder: A bidirectional recurrence that reads the contexts of all steps.
    """

    def __init__(self, context_dim: int, static_dim: int, encoder: Recurrence | None) -> None:
        super().__init__()
        self.context_dim, self.static_dim = context_dim, static_dim
        self.standardize_context = Standardize(context_dim)
        self.standardize_static = Standardize(static_dim)
        self.encoder: Any = encoder

    @property
    def width(self) -> int:
        """Number of entries of a step's inputs."""
        encoded = self.context_dim if self.encoder is None else self.encoder.num_outputs
        return encoded + self.static_dim

    def forward(
        self, context: Tensor | None, static: Tensor | None, lengths: Tensor | None
    ) -> Tensor | None:
        r"""The inputs of steps.

        Args:
            context: Shape (\*C, T, context_dim).
            static: Shape (\*S, static_dim).
            lengths: Numbers of steps that contexts have, shape (\*L).

        Returns:
            Tensor of shape (\*B, T, width), or (\*S, 1, width) if there is no context, or None if
            there are no inputs.
        """
        parts = []
        if context is not None:
            context = self.standardize_context(context)
            parts.append(context if self.encoder is None else self._encode(context, lengths))
        if static is not None:
            parts.append(self.standardize_static(static).unsqueeze(-2))
        if len(parts) < 2:
            return parts[0] if parts else None
        leading = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*leading, -1) for part in parts], -1)

    def check_context(
        self, context: Any, lengths: Tensor | None, like: Tensor, validate: bool
    ) -> Tensor | None:
        r"""Returns the context of steps as a tensor, with zeros for padding; None for none.

        Args:
            context: Shape (\*C, T, context_dim), or None.
            lengths: Numbers of steps, shape (\*L), or None.
            like: A tensor of the dtype and on the device that are wanted.
            validate: Whether to look for NaN and infinity.

        Raises:
            ValueError: If it does not fit, is missing, or is not asked for.
        """
        if not self.context_dim:
            if context is not None:
                raise ValueError(
                    "Expected no context of every step, as the model was built without "
                    "context_dim."
                )
            return None
        if context is None:
            raise ValueError(
                f"This model needs a context of shape (*B, T, {self.context_dim}). Call "
                f"condition(context), and use the distribution that it returns; pass context to "
                f"predict, and x to step; train on pairs (values, context)."
            )
        context = as_context("context", context, like=like)
        if context.dim() < 2 or context.shape[-1] != self.context_dim:
            raise ValueError(
                f"Expected a context of shape (*B, T, {self.context_dim}), got "
                f"{tuple(context.shape)}."
            )
        if lengths is not None:
            common_shape({"context": (context, 2), "lengths": (lengths, 0)})
            present = within(lengths, context.shape[-2]).unsqueeze(-1)
            context = torch.where(present, context, 0.0)
        if validate:
            check_finite("context", context)
        return context

    def check_static(self, static: Any, like: Tensor, validate: bool) -> Tensor | None:
        r"""Returns the context of sequences as a tensor, shape (\*B, static_dim); None for none.

        Args:
            static: The context, or None.
            like: A tensor of the dtype and on the device that are wanted.
            validate: Whether to look for NaN and infinity.

        Raises:
            ValueError: If it does not fit, is missing, or is not asked for.
        """
        if not self.static_dim:
            if static is not None:
                raise ValueError(
                    "Expected no static context, as the model was built without static_dim."
                )
            return None
        if static is None:
            raise ValueError(
                f"This model needs a static context of shape (*B, {self.static_dim}). Call "
                f"condition(static=...), and use the distribution that it returns; pass static "
                f"to predict and step, too."
            )
        static = as_rows("static", static, self.static_dim, like=like)
        if validate:
            check_finite("static", static)
        return static

    def _encode(self, context: Tensor, lengths: Tensor | None) -> Tensor:
        """Outputs of the encoder, zero after the ends of sequences."""
        leading = context.shape[:-2]
        if lengths is not None:
            leading = torch.broadcast_shapes(leading, lengths.shape)
            lengths = lengths.expand(leading).reshape(-1)
        flat = context.expand(*leading, -1, -1).reshape(-1, *context.shape[-2:])
        encoded, _ = self.encoder(flat, None, lengths)
        if lengths is not None:
            present = within(lengths, context.shape[-2]).unsqueeze(-1)
            encoded = torch.where(present, encoded, 0.0)
        return encoded.reshape(*leading, *encoded.shape[-2:])
