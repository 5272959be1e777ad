"""Files: what is saved comes back, what is not ours or was changed is refused."""

import json
from functools import partial

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pyromix import DistributionModule, Flow, GaussianMixture, fit, load, register, save
from pyromix.checkpoints import read_tree, write_tree


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def rewrite(path, change_header=None, change_tensors=None):
    """Changes a file as an attacker, or a later version, might."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["pyromix"])
    if change_header is not None:
        header = change_header(header)
    if change_tensors is not None:
        tensors = change_tensors(tensors)
    save_file(tensors, path, metadata={"pyromix": json.dumps(header)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(path, dtype):
    model = Flow(
        GaussianMixture(4, 3, "shared", variance_floor=1e-3),
        [transforms.spline_coupling(4), transforms.permute(4), transforms.affine_coupling(4).inv],
    ).to(dtype)
    model.initialized.fill_(True)
    save(model, path)
    other = load(path)
    assert repr(other) == repr(model)
    assert other.initialized
    assert not other.training
    before, after = model.state_dict(), other.state_dict()
    assert list(before) == list(after)
    assert all(
        torch.equal(before[k], after[k]) and after[k].dtype == before[k].dtype for k in before
    )
    assert all(p.requires_grad for p in other.parameters())


def test_nothing_is_pickled(path):
    save(GaussianMixture(2, 2), path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert set(header) == {
        "__metadata__",
        "initialized",
        "logits",
        "loc",
        "raw_scale",
        "units.loc",
        "units.scale",
    }
    assert json.loads(header["__metadata__"]["pyromix"])["description"] == {
        "class": "pyromix.GaussianMixture",
        "config": {
            "dim": 2,
            "num_components": 2,
            "covariance": "diagonal",
            "rank": 1,
            "variance_floor": 1e-6,
            "missing": "error",
            "context_dim": 0,
            "hidden_dims": {"tuple": [64, 64]},
        },
    }


def test_into_keeps_device_and_dtype(path):
    model, other = GaussianMixture(2, 3), GaussianMixture(2, 3).float()
    save(model, path)
    assert load(path, into=other) is other
    assert other.loc.dtype == torch.float32
    torch.testing.assert_close(other.loc, model.loc.float())


def test_into_a_model_with_other_arguments_is_refused(path):
    save(GaussianMixture(2, 3, variance_floor=1.0), path)
    with pytest.raises(ValueError, match="of other variance_floor"):
        load(path, into=GaussianMixture(2, 3))


def test_device(path):
    save(GaussianMixture(2, 3), path)
    assert load(path, device="cpu").loc.device.type == "cpu"


def test_saving_replaces_at_once(path, monkeypatch):
    save(GaussianMixture(2, 3), path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("pyromix.checkpoints.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(GaussianMixture(2, 3), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


class Networked(DistributionModule):
    """A model that holds a user's network."""

    support = torch.distributions.constraints.real_vector
    has_rsample = True

    def __init__(self, network):
        super().__init__(event_shape=(2,))
        self.network = network

    def rsample(self, sample_shape=torch.Size()):
        return self.network(torch.randn(self._extended_shape(sample_shape)))

    def log_prob(self, value):
        return dist.Normal(0.0, 1.0).log_prob(self.network(value)).sum(-1)


def test_users_network_is_loaded_into_a_model(path):
    model, other = Networked(nn.Linear(2, 2)), Networked(nn.Linear(2, 2))
    save(model, path)
    with pytest.raises(ValueError, match=r"load\(path, into=model\)"):
        load(path)
    load(path, into=other)
    x = torch.randn(3, 2)
    torch.testing.assert_close(other.log_prob(x), model.log_prob(x))
    with pytest.raises(ValueError, match="to load it into"):
        load(path, into=GaussianMixture(2, 2))
    with pytest.raises(ValueError, match=r"network\.weight has shape"):
        load(path, into=Networked(nn.Linear(2, 3)))


class Scaling(nn.Module):
    """A user's network that keeps its constructor's arguments."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_users_network_is_rebuilt_if_registered(path):
    register(Scaling)
    model = Networked(Scaling(3.0))
    save(model, path)
    x = torch.randn(3, 2)
    assert torch.equal(load(path).log_prob(x), model.log_prob(x))


def test_tied_parameters(path):
    coupling = transforms.affine_coupling(4)
    base = dist.Normal(torch.zeros(4), 1.0)
    model = Flow(base, [coupling, transforms.permute(4), coupling])
    save(model, path)
    x = torch.randn(3, 4)
    torch.testing.assert_close(load(path).log_prob(x), model.log_prob(x))
    again = Flow(base, [tied := transforms.affine_coupling(4), transforms.permute(4), tied])
    torch.testing.assert_close(load(path, into=again).log_prob(x), model.log_prob(x))


def test_missing_file_and_folder(path):
    with pytest.raises(FileNotFoundError):
        load(path)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        save(GaussianMixture(2, 2), path / "deeper")
    with pytest.raises(ValueError, match="is a folder"):
        load(path.parent)


def described(**changes):
    return lambda header: header | {"description": header["description"] | changes}


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        (described(**{"class": "os.system"}), None, "Unknown class 'os.system'"),
        (described(**{"class": "mine.Model"}), None, "import the module that defines it"),
        (described(**{"class": "torch.distributions.normal.Normal"}), None, "does not describe"),
        (described(config={"dim": 2}), None, "does not describe"),
        (described(config={"dim": 2, "num_components": 3, "extra": 1}), None, "not describe"),
        (described(config={"dim": 5, "num_components": 3}), None, "loc has shape"),
        (described(config={"dim": -1, "num_components": 3}), None, "at least 1, got -1"),
        (described(config={"dim": {"object": "os.system", "config": {}}}), None, "Unknown class"),
        (lambda h: h | {"format": 99}, None, "Upgrade pyromix"),
        (lambda h: h | {"format": "1"}, None, "format '1'"),
        (lambda h: h | {"kind": "other"}, None, "holds a 'other'"),
        (lambda h: {}, None, "not written by pyromix"),
        (lambda h: [], None, "not written by pyromix"),
        (lambda h: h | {"description": None}, None, "does not describe"),
        (None, lambda t: t | {"loc": t["loc"][:, :1].contiguous()}, r"loc has shape \(3, 1\)"),
        (None, lambda t: t | {"loc": t["loc"].long()}, "loc has dtype torch.int64"),
        (None, lambda t: t | {"loc": t["loc"].half()}, "loc has dtype torch.float16"),
        (None, lambda t: t | {"initialized": t["initialized"].long()}, "initialized has dtype"),
        (lambda h: h | {"description": []}, None, "does not describe"),
        (lambda h: h | {"kind": []}, None, "Expected a model file"),
        (None, lambda t: {k: v for k, v in t.items() if k != "loc"}, "loc is missing"),
        (None, lambda t: t | {"more": t["logits"].clone()}, "more is unknown"),
    ],
)
def test_tampered_files_are_refused(path, header, tensors, message):
    save(GaussianMixture(2, 3), path)
    rewrite(path, header, tensors)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_foreign_files_are_refused(path):
    for content in (b"", b"text", b"\x80\x04\x95", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a safetensors file"):
            load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not written by pyromix"):
        load(path)
    write_tree({"step": 1}, path)
    with pytest.raises(ValueError, match="to resume training"):
        load(path)
    save(GaussianMixture(2, 3), path)
    with pytest.raises(ValueError, match=r"pyromix\.load"):
        read_tree(path)


def test_trees(path):
    tree = {
        "numbers": [1, 2.5, True, None, "text", float("nan")],
        "tensors": {0: torch.arange(3), "nested": (torch.zeros(2, 2), [torch.ones(1)])},
        "empty": {},
    }
    write_tree(tree, path)
    read = read_tree(path)
    assert read["numbers"][:5] == tree["numbers"][:5]
    assert read["empty"] == {}
    assert torch.equal(read["tensors"][0], torch.arange(3))
    assert isinstance(read["tensors"]["nested"], tuple)
    assert torch.equal(read["tensors"]["nested"][1][0], torch.ones(1))
    with pytest.raises(TypeError, match="object at where"):
        write_tree({"where": object()}, path)


def test_files_have_the_permissions_of_new_files(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    save(GaussianMixture(2, 2), tmp_path / "model.safetensors")
    fit(
        GaussianMixture(2, 2),
        torch.randn(20, 2),
        steps=1,
        checkpoint=tmp_path / "run.safetensors",
        progress_bar=False,
    )
    for name in ("model", "run"):
        mode = (tmp_path / f"{name}.safetensors").stat().st_mode
        assert mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "later"),
        ({"into": GaussianMixture(2, 2)}, "of other later"),
        ({"into": Flow(GaussianMixture(2, 2), [])}, "got a pyromix.Flow"),
        ({"into": GaussianMixture(2, 2, "full")}, "full|covariance"),
    ],
)
def test_errors_about_files_of_a_later_version_name_it(options, message, path):
    save(GaussianMixture(2, 2), path)

    def later(header, version):
        description = header["description"]
        config = {**description["config"], "later": True}
        return {**header, "description": {**description, "config": config}, "version": version}

    for version, named in (("99.1.0", True), ("0.0.1", False)):
        rewrite(path, partial(later, version=version))
        with pytest.raises(ValueError, match=message) as error:
            load(path, **options)
        assert ("written by pyromix 99.1.0" in str(error.value)) is named
