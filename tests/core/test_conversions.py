"""Arguments that hold numbers: tensors, NumPy arrays, lists, and what is refused."""

import math

import numpy as np
import pytest
import torch

from pyromix.core.batch import as_batch, split_batch
from pyromix.core.conversions import (
    as_labels,
    as_mask,
    as_numbers,
    as_rows,
    as_tensor,
    as_tensors,
)
from pyromix.training.minibatches import list_tensors

LIKE = {dtype: torch.zeros(1, dtype=dtype) for dtype in (torch.float32, torch.float64)}
ARRAY = np.arange(6.0).reshape(3, 2)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


NUMBERS = {
    "array": (ARRAY, ARRAY),
    "float32": (ARRAY.astype(np.float32), ARRAY),
    "integers": (np.array([3, 250], dtype=np.uint8), [3.0, 250.0]),
    "backwards": (ARRAY[::-1], ARRAY[::-1].copy()),
    "transposed": (ARRAY.T, ARRAY.T.copy()),
    "other byte order": (ARRAY.astype(">f8"), ARRAY),
    "read-only": (read_only(ARRAY), ARRAY),
    "lists": (ARRAY.tolist(), ARRAY),
    "list of arrays": (list(ARRAY), ARRAY),
    "missing": ([[1, math.nan]], [[1.0, math.nan]]),
    "number": (3, 3.0),
    "NumPy's number": (np.float32(2.5), 2.5),
    "array without dimensions": (np.array(2.5), 2.5),
}


@pytest.mark.parametrize("dtype", LIKE)
@pytest.mark.parametrize(("value", "expected"), NUMBERS.values(), ids=NUMBERS)
def test_what_holds_numbers_becomes_a_tensor(value, expected, dtype):
    got = as_tensor("value", value, like=LIKE[dtype])
    torch.testing.assert_close(got, torch.tensor(expected, dtype=dtype), equal_nan=True)


def test_a_tensor_is_itself():
    value = torch.ones(2, requires_grad=True)
    assert as_tensor("value", value, like=LIKE[torch.float64]) is value


class Frame:
    """What tables of other libraries have."""

    def to_numpy(self):
        raise AssertionError


f64 = LIKE[torch.float64]
BAD = [
    (lambda: as_tensor("x", torch.zeros(2).float(), like=f64), "x to have dtype torch.float64"),
    (lambda: as_tensor("x", torch.zeros(2).long(), like=f64), "float32 or torch.float64"),
    (lambda: as_tensor("x", "text", like=f64), "x to be a tensor, got str"),
    (lambda: as_tensor("x", ["text"], like=f64), "real numbers, got strings"),
    (lambda: as_tensor("x", None, like=f64), r"got NoneType.*numpy.asarray"),
    (lambda: as_tensor("x", {1.0}, like=f64), "got set"),
    (lambda: as_tensor("x", Frame(), like=f64), r"got Frame.*to_numpy"),
    (lambda: as_tensor("x", [1.0, None], like=f64), "got objects.*Write NaN"),
    (lambda: as_tensor("x", True, like=f64), "got booleans"),
    (lambda: as_tensor("x", np.array([True]), like=f64), "got booleans"),
    (lambda: as_tensor("x", 1j, like=f64), "got complex numbers"),
    (lambda: as_tensor("x", [[1.0], [1.0, 2.0]], like=f64), "lists of different lengths"),
    (lambda: as_tensor("x", [torch.zeros(2)], like=f64), r"torch.stack"),
    (lambda: as_tensor("x", np.ma.masked_array([1.0]), like=f64), r"filled\(numpy.nan\)"),
    (lambda: as_rows("context", [1.0, 2.0], 3, like=f64), r"context of shape \(\*B, 3\), got \(2"),
    (lambda: as_rows("context", 1.0, 1, like=f64), r"context of shape \(\*B, 1\), got \(\)"),
    (lambda: as_mask("observed", [1.0], like=f64), "boolean tensor.*got float64"),
    (lambda: as_mask("observed", [True, False], like=f64), r"of shape \(1,\).*of shape \(2,\)"),
    (lambda: as_labels("red", 3, f64.device), "got str.*from 0 to 2"),
    (lambda: as_labels([0.0], 3, f64.device), "integer labels of classes, got torch.float"),
    (lambda: as_labels(True, 3, f64.device), "integer labels of classes, got torch.bool"),
    (lambda: as_labels([0, 3, -2], 3, f64.device), "labels from 0 to 2, got -2 to 3"),
    (lambda: split_batch(Frame(), like=f64), "got Frame"),
    (lambda: as_tensors(x=[1.0], y=torch.zeros(1).long()), "y to have dtype torch.float32 or"),
    (lambda: as_tensors(x=f64, y=torch.zeros(1).float()), "y to have dtype torch.float64"),
    (lambda: as_tensors(x=[1.0], y=Frame()), "Expected y.*got Frame"),
    (lambda: as_numbers("x", 1j), "got complex numbers"),
    (lambda: as_numbers("x", torch.zeros(1, dtype=torch.complex64)), "got torch.complex64"),
    (lambda: as_numbers("x", ["text"]), "got strings"),
    (lambda: split_batch(ARRAY), "Expected a batch"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_masks_and_labels():
    mask = as_mask("observed", [[True, False]], like=torch.zeros(1, 2))
    assert torch.equal(mask, torch.tensor([[True, False]]))
    for labels in ([[0], [2]], np.array([[0], [2]], dtype=np.uint8), torch.tensor([[0], [2]])):
        got = as_labels(labels, 3, torch.device("cpu"))
        assert torch.equal(got, torch.tensor([[0], [2]]))
    assert int(as_labels(2, 3, torch.device("cpu"))) == 2


@pytest.mark.parametrize("batch", [ARRAY, ARRAY.tolist(), (ARRAY,), [ARRAY], {"value": ARRAY}])
def test_batches_of_arrays(batch):
    value, context = split_batch(batch, like=f64)
    assert torch.equal(value, torch.tensor(ARRAY))
    assert context is None


@pytest.mark.parametrize(
    "batch",
    [
        (ARRAY, [0, 1, 2]),
        [ARRAY, [0, 1, 2]],
        (ARRAY.tolist(), [0, 1, 2]),
        {"value": ARRAY.tolist(), "context": [0, 1, 2]},
    ],
)
def test_pairs_of_arrays(batch):
    value, context = split_batch(batch, like=f64)
    assert torch.equal(value, torch.tensor(ARRAY))
    assert context == [0, 1, 2]


def test_numbers_without_a_companion():
    assert as_tensor("x", ARRAY.astype(np.float32)).dtype == torch.float32
    torch.set_default_dtype(torch.float32)
    assert as_tensor("x", ARRAY).dtype == torch.float64
    for value in (ARRAY.tolist(), np.arange(3), 1.0, ARRAY.astype(np.float16)):
        assert as_tensor("x", value).dtype == torch.float32


@pytest.mark.parametrize("dtype", LIKE)
def test_several_arguments_follow_the_one_that_is_a_tensor(dtype):
    tensor, others = LIKE[dtype], (ARRAY, ARRAY.astype(np.float32), [1, 2])
    for x in others:
        assert [t.dtype for t in as_tensors(x=x, y=tensor)] == [dtype, dtype]
        assert [t.dtype for t in as_tensors(x=tensor, y=x)] == [dtype, dtype]
        assert [t.dtype for t in as_tensors(x=ARRAY, y=x)] == [torch.float64] * 2
    assert as_tensors(x=tensor, y=[1.0])[0] is tensor


TYPES = {
    **{np.dtype(name): getattr(torch, name) for name in ("uint8", "int16", "int64", "float16")},
    **{np.dtype(name): getattr(torch, name) for name in ("uint16", "bool", "float32", "float64")},
    np.dtype(">i4"): torch.int32,
    np.dtype(np.longdouble): torch.float64,
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_numbers_of_any_type_keep_it(dtype):
    got = as_numbers("x", np.array([[0, 1], [1, 0]], dtype=dtype)[::-1])
    assert torch.equal(got, torch.tensor([[1, 0], [0, 1]]).to(TYPES[dtype]))
    assert got.dtype == TYPES[dtype]


def test_lists_of_numbers_of_any_type():
    torch.set_default_dtype(torch.float32)
    assert as_numbers("x", [1.0, 2]).dtype == torch.float32
    assert as_numbers("x", [1, 2]).dtype == torch.int64
    assert as_numbers("x", [True]).dtype == torch.bool
    tensor = torch.zeros(2, dtype=torch.uint8)
    assert as_numbers("x", tensor) is tensor


LABELS = np.array([0, 1, 2], dtype=np.int32)


@pytest.mark.parametrize("keep_integers", [False, True])
def test_training_data_of_arrays(keep_integers):
    def convert(data):
        return as_batch("data", data, like=LIKE[torch.float32], keep_integers=keep_integers)

    values = torch.tensor(ARRAY).float()
    tensor = torch.zeros(3, dtype=torch.float64)
    forms = [
        (ARRAY, values),
        (ARRAY.tolist(), values),
        ((ARRAY, LABELS), (values, torch.tensor(LABELS))),
        ([ARRAY, LABELS], (values, torch.tensor(LABELS))),
        ((ARRAY.tolist(), [0, 1, 2]), (values, torch.arange(3))),
        ((ARRAY, [True] * 3), (values, torch.ones(3, dtype=torch.bool))),
        ((values, ARRAY), (values, values)),
        (tensor, tensor),
        ((tensor, tensor), (tensor, tensor)),
    ]
    for data, expected in forms:
        for got, wanted in zip(
            *(x if isinstance(x, tuple) else (x,) for x in (convert(data), expected)), strict=True
        ):
            assert torch.equal(got, wanted)
            assert got.dtype == wanted.dtype
    got = convert({"value": ARRAY, "context": LABELS})
    assert [x.dtype for x in got.values()] == [torch.float32, torch.int32]
    for integers in (LABELS, LABELS.tolist(), (LABELS,), {"value": LABELS}):
        (got,) = list_tensors(convert(integers))
        assert got.is_floating_point() != keep_integers
