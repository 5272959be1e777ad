"""Whatever a user passes wrongly: an error that says what was expected."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyromix import RAD, ConditionalFoldingCoupling, Flow, Fold, FoldingCoupling, fit

from .slow import normal

zeros = torch.zeros


BAD = [
    # coordinates and layers
    (lambda: RAD(0), "dim to be an integer of at least 1, got 0"),
    (lambda: RAD(2.0), "dim to be an integer of at least 1, got 2.0"),
    (lambda: RAD(True), "dim to be an integer of at least 1, got True"),
    (lambda: RAD(2, num_layers=0), "num_layers to be an integer of at least 1, got 0"),
    (lambda: RAD(1), r"at least two coordinates.*pyromix\.Fold"),
    (lambda: RAD(1, partition="random"), r"pyromix\.Fold"),
    (lambda: RAD(1, 1, partition=[[0]]), r"pyromix\.Fold"),
    (lambda: FoldingCoupling(1), r"coordinate to keep.*pyromix\.Fold"),
    (lambda: FoldingCoupling(3, [0, 1, 2]), "at least one coordinate to keep"),
    (lambda: FoldingCoupling(0), "dim to be an integer of at least 1, got 0"),
    # partitions
    (lambda: RAD(3, partition="halves"), "'alternate', 'random' or indices.*got 'halves'"),
    (lambda: RAD(3, 2, partition=[[0]]), "each of 2 layers, got 1 sequences"),
    (lambda: RAD(3, 1, partition=[[0], [1]]), "each of 1 layers, got 2 sequences"),
    (lambda: RAD(3, 1, partition=[[]]), r"at least one, got \[\]"),
    (lambda: RAD(3, 1, partition=[[3]]), "index in folded to be an integer from -3 to 2, got 3"),
    (lambda: RAD(3, 1, partition=[[-4]]), "index in folded to be an integer from -3 to 2, got -4"),
    (lambda: RAD(3, 1, partition=[[0, 0]]), "different indices of 3 coordinates"),
    (lambda: RAD(3, 1, partition=[[0, -3]]), "different indices of 3 coordinates"),
    (lambda: RAD(3, 1, partition=[[0.5]]), "index in folded to be an integer.*got 0.5"),
    (lambda: FoldingCoupling(2, []), r"at least one, got \[\]"),
    (lambda: FoldingCoupling(2, 0), "sequence of indices, got 0"),
    (lambda: RAD(2, 1, partition=[1]), "sequence of indices, got 1"),
    (
        lambda: RAD(2, 1, partition=[[0]]).load_state_dict(RAD(2, 1).state_dict()),
        r"folds coordinates \(0,\), got that of one that folds \(1,\)",
    ),
    (lambda: FoldingCoupling(3)(zeros(5, 2)), "vectors of length 3, got shape"),
    (lambda: FoldingCoupling(2, [5]), "index in folded to be an integer from -2 to 1, got 5"),
    (lambda: ConditionalFoldingCoupling(2, 1, [1, 1]), "different indices of 2 coordinates"),
    # networks
    (lambda: Fold(()), "at least one width"),
    (lambda: Fold(8), "hidden_dims to be a sequence of widths"),
    (lambda: RAD(2, hidden_dims=[]), "at least one width"),
    (lambda: RAD(2, hidden_dims=(8, 0)), "every width in hidden_dims"),
    (lambda: FoldingCoupling(2, hidden_dims=(-3,)), "every width in hidden_dims"),
    (lambda: FoldingCoupling(2, hidden_dims=(2.5,)), "every width in hidden_dims"),
    # bases
    (lambda: RAD(2, base=normal(3)), r"vectors of length 2, got one with batch shape \(3,\)"),
    (lambda: RAD(2, base=dist.Normal(0.0, 1.0)), "vectors of length 2"),
    (lambda: RAD(2, base=normal(4, 2).to_event(1)), "vectors of length 2"),
    (lambda: Flow(dist.Normal(0.0, 1.0), [FoldingCoupling(2)]), "shape fits"),
    # values
    (lambda: RAD(2).log_prob(zeros(5, 3)), r"event shape \(2,\), got shape \(5, 3\)"),
    (lambda: RAD(2).log_prob(zeros(())), r"event shape \(2,\), got shape \(\)"),
    (lambda: RAD(2).log_prob([0.0, 0.0]), "torch.Tensor, got list"),
    (lambda: RAD(2).log_prob(zeros(5, 2).float()), "dtype torch.float64, got torch.float32"),
    (lambda: RAD(2).log_prob(zeros(5, 2).long()), "got torch.int64"),
    (lambda: RAD(2).log_prob(zeros(5, 2) * math.nan), "10 NaN among 10 entries"),
    (lambda: RAD(2).expand((3,)).expand((4,)), r"\(3,\) expands to"),
    # initialisation and training
    (lambda: RAD(2).initialize(zeros(5, 3)), r"finite data of shape \(N, 2\), got shape \(5, 3\)"),
    (lambda: RAD(2).initialize(zeros(5, 2).float()), "dtype torch.float64, got torch.float32"),
    (lambda: RAD(2).initialize(zeros(5, 2).long()), "got torch.int64"),
    (lambda: RAD(2).initialize(zeros(2)), r"finite data of shape \(N, 2\)"),
    (lambda: RAD(2).initialize(zeros(5, 2) * math.nan), "10 entries that are not finite"),
    (lambda: RAD(2).initialize(zeros(5, 2) + math.inf), "10 entries that are not finite"),
    (lambda: fit(RAD(2), zeros(9, 3), steps=1, progress_bar=False), r"shape \(N, 2\)"),
    # contexts
    (lambda: RAD(2, context_dim=-1), "context_dim to be an integer of at least 0"),
    (lambda: ConditionalFoldingCoupling(2, 0), "context_dim to be an integer of at least 1"),
    (lambda: RAD(2, context_dim=1).log_prob(zeros(2)), r"condition\(context\)"),
    (lambda: RAD(2, context_dim=1).sample(), r"condition\(context\)"),
    (lambda: RAD(2, context_dim=1)(), r"condition\(context\)"),
    (lambda: RAD(2, context_dim=1).encode(zeros(2)), r"condition\(context\)"),
    (lambda: RAD(2, context_dim=3).condition(zeros(5, 2)), r"shape \(\*B, 3\), got \(5, 2\)"),
    (lambda: RAD(2, context_dim=3).condition(zeros(())), r"shape \(\*B, 3\), got \(\)"),
    (lambda: RAD(2, context_dim=3).condition(zeros(3).float()), "dtype torch.float64"),
    (lambda: RAD(2, context_dim=1).condition(zeros(1) * math.nan), "finite context"),
    (lambda: RAD(2, context_dim=3).condition("abc"), "context to be a tensor, got str"),
    (lambda: RAD(2, context_dim=3).condition(None), "context to be a tensor, got NoneType"),
    # branches
    (lambda: RAD(2, 2).decode(zeros(2)), "2 tensors of branches.*got 0"),
    (lambda: RAD(2, 2).decode(zeros(2), [zeros(1).long()]), "2 tensors of branches.*got 1"),
    (lambda: RAD(2, 2).decode(zeros(2), zeros(2, 1).long()), "got a Tensor"),
    (lambda: RAD(2, 1).decode(zeros(2), [zeros(1)]), "branches to be integers, got torch.float64"),
    (lambda: RAD(2, 1).decode(zeros(2), [[0.0]]), "branches to be integers, got float64"),
    (lambda: RAD(2, 1).decode(zeros(2), [zeros(1).bool()]), "integers, got torch.bool"),
    (lambda: RAD(2, 1).decode(zeros(2), [[3]]), "branches from 0 to 2.*middle.*got 3"),
    (lambda: RAD(2, 1).decode(zeros(2), [zeros(1).long() - 1]), "branches from 0 to 2.*got -1"),
    (lambda: RAD(2, 1).decode("z", [[0]]), "z to be a tensor, got str"),
    (lambda: RAD(2, 1).decode(zeros(5, 2), [zeros(5).long()]), r"shape \(5, 1\).*got \(5,\)"),
    (lambda: Flow(normal(2), []).decode(zeros(2), [zeros(1).long()]), "0 tensors.*got 1"),
    # directions
    (lambda: Flow(normal(2), [Fold().inv]), "Use the transform itself"),
    (lambda: RAD(2).has_rsample_(True), "no pathwise gradients"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
