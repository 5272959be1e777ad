"""PyTorch's recurrent networks with one interface, also where those cannot be traced."""

__all__ = ["CELLS", "Recurrence"]

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..core.checks import is_traced

CELLS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU}

Memory = tuple[Tensor, ...]
"""What a recurrence carries on: hidden states (layers, N, H) and, of an LSTM, cells."""


class Recurrence(nn.Module):
    """An LSTM or a GRU over batches of sequences (N, T, number of inputs).

    Under `torch.compile` and function transforms such as `vmap`, which PyTorch's own modules do
    not support, the same equations are evaluated step by step.

    Args:
        cell: ``"lstm"`` or ``"gru"``.
        num_inputs: Entries of an input.
        hidden_dim: Width H.
        num_layers: Number of layers.
        bidirectional: Whether a second network runs backwards in time; outputs are those of both.
    """

    def __init__(
        self,
        cell: str,
        num_inputs: int,
        hidden_dim: int,
        num_layers: int,
        *,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.rnn = CELLS[cell](
            num_inputs, hidden_dim, num_layers, batch_first=True, bidirectional=bidirectional
        )

    @property
    def num_memories(self) -> int:
        """Number of tensors that are carried on: two of an LSTM, one of a GRU."""
        return 2 if isinstance(self.rnn, nn.LSTM) else 1

    @property
    def num_outputs(self) -> int:
        """Entries of an output: H, or 2 H of a bidirectional network."""
        return self.rnn.hidden_size * (2 if self.rnn.bidirectional else 1)

    def forward(
        self, inputs: Tensor, memory: Memory | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Memory]:
        """Runs over sequences.

        Args:
            inputs: Shape (N, T, number of inputs).
            memory: Where to go on from; by default zeros.
            lengths: Numbers of steps (N,) after which sequences end; by default T for all.

        Returns:
            Outputs of the last layer, (N, T, H) or (N, T, 2 H), which mean nothing after a
            sequence's end, and the memory after its last step.
        """
        if is_traced():
            return self._unrolled(inputs, memory, lengths)
        given: Any = memory if memory is None or len(memory) > 1 else memory[0]
        if lengths is None or len(inputs) == 0:  # nothing cannot be packed
            outputs, final = self.rnn(inputs, given)
        else:
            packed = pack_padded_sequence(
                inputs, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            packed_outputs, final = self.rnn(packed, given)
            outputs, _ = pad_packed_sequence(
                packed_outputs, batch_first=True, total_length=inputs.shape[1]
            )
        return outputs, final if isinstance(final, tuple) else (final,)

    def _unrolled(
        self, inputs: Tensor, memory: Memory | None, lengths: Tensor | None
    ) -> tuple[Tensor, Memory]:
        if memory is None:
            size = len(self.rnn.all_weights), len(inputs), self.rnn.hidden_size
            memory = (inputs.new_zeros(size),) * self.num_memories
        directions = 2 if self.rnn.bidirectional else 1
        final, outputs = [], inputs
        for layer in range(self.rnn.num_layers):
            parts = []
            for direction in range(directions):
                index = layer * directions + direction
                part, last = self._run_layer(
                    index, outputs, tuple(m[index] for m in memory), lengths, direction == 1
                )
                parts.append(part)
                final.append(last)
            outputs = torch.cat(parts, -1)
        return outputs, tuple(torch.stack(parts) for parts in zip(*final, strict=True))

    def _run_layer(
        self, index: int, inputs: Tensor, memory: Memory, lengths: Tensor | None, backwards: bool
    ) -> tuple[Tensor, Memory]:
        from_input, from_hidden, input_bias, hidden_bias = self.rnn.all_weights[index]
        projected = linear(inputs, from_input, input_bias)
        step = _lstm_step if isinstance(self.rnn, nn.LSTM) else _gru_step
        times = range(inputs.shape[1])
        outputs: list[Any] = [None] * len(times)
        for t in reversed(times) if backwards else times:
            recurrent = linear(memory[0], from_hidden, hidden_bias)
            following = step(projected[:, t], recurrent, memory)
            if lengths is not None:  # a sequence that has ended, or not begun, stays as it is
                runs = (t < lengths).unsqueeze(-1)
                following = tuple(
                    torch.where(runs, new, old) for new, old in zip(following, memory, strict=True)
                )
            memory, outputs[t] = following, following[0]
        return torch.stack(outputs, 1), memory


def _lstm_step(projected: Tensor, recurrent: Tensor, memory: Memory) -> Memory:
    enter, forget, proposal, leave = (projected + recurrent).chunk(4, -1)
    cell = forget.sigmoid() * memory[1] + enter.sigmoid() * proposal.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _gru_step(projected: Tensor, recurrent: Tensor, memory: Memory) -> Memory:
    x_reset, x_update, x_new = projected.chunk(3, -1)
    h_reset, h_update, h_new = recurrent.chunk(3, -1)
    update = (x_update + h_update).sigmoid()
    new = (x_new + (x_reset + h_reset).sigmoid() * h_new).tanh()
    return (new + update * (memory[0] - new),)
