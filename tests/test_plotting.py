"""Pictures: what is drawn where."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyromix import GaussianMixture
from pyromix.plotting import plot_density, plot_images


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_images_are_laid_out_in_rows(ax):
    images = torch.arange(5.0).reshape(5, 1, 1).expand(5, 2, 3) / 4
    plot_images(images, ax, columns=2)
    canvas = np.asarray(ax.images[0].get_array().filled(np.nan))
    assert canvas.shape == (3 * 2 + 2, 2 * 3 + 1)
    assert (canvas[0:2, 0:3] == 0.0).all()
    assert (canvas[0:2, 4:7] == 0.25).all()
    assert (canvas[6:8, 0:3] == 1.0).all()
    assert np.isnan(canvas[6:8, 4:7]).all()  # no sixth image
    assert np.isnan(canvas[2]).all()


def test_images_of_all_types(ax):
    canvases = []
    marked = [[[False, True]]]
    for images in (
        torch.tensor(marked),
        np.array(marked),
        marked,
        np.uint8([[[0, 255]]]),
        [[[0.0, 1.0]]],
    ):
        plot_images(images, ax)
        canvases.append(np.asarray(ax.images[-1].get_array()))
    for canvas in canvases:
        assert canvas.tolist() == [[0.0, 1.0]]


def test_colour_images(ax):
    images = torch.rand(4, 2, 4, 3)
    plot_images(images, ax)
    plot_images(images.movedim(-1, 1), ax)
    assert ax.images[0].get_array().shape == (5, 9, 3)
    assert np.array_equal(*(image.get_array() for image in ax.images), equal_nan=True)


@pytest.mark.parametrize("shape", [(4, 1, 2, 4), (4, 2, 4, 1)])
def test_grey_images_with_a_channel(shape, ax):
    plot_images(torch.rand(4, 2, 4).reshape(shape), ax)
    assert ax.images[0].get_array().shape == (5, 9)


@pytest.mark.parametrize("shape", [(4, 8), (4, 2, 4, 4), (4, 2, 2, 4, 3)])
def test_what_is_no_image_is_refused(shape, ax):
    with pytest.raises(ValueError, match="Expected images of shape"):
        plot_images(torch.rand(shape), ax)


def test_density_is_where_the_distribution_is(ax):
    law = dist.Normal(torch.tensor([3.0, -1.0]), torch.tensor([0.5, 1.0])).to_event(1)
    plot_density(law, ax, resolution=101)
    mesh = ax.collections[0]
    values = np.asarray(mesh.get_array()).reshape(101, 101)
    row, column = np.unravel_index(values.argmax(), values.shape)
    left, right, bottom, top = *ax.get_xlim(), *ax.get_ylim()
    assert abs(left + (right - left) * column / 100 - 3.0) < 0.1
    assert abs(bottom + (top - bottom) * row / 100 + 1.0) < 0.1
    cell = (right - left) * (top - bottom) / 100**2
    assert abs(values.sum() * cell - 1) < 0.1


def test_limits_are_kept(ax):
    plot_density(GaussianMixture(2, 3), ax, limits=(-1.0, 2.0, -3.0, 4.0), resolution=10)
    assert ax.get_xlim() == (-1.0, 2.0)
    assert ax.get_ylim() == (-3.0, 4.0)


def test_what_cannot_be_drawn(ax):
    with pytest.raises(ValueError, match="Reshape flat ones"):
        plot_images(torch.zeros(5, 64), ax)
    with pytest.raises(ValueError, match=r"event shape \(2,\)"):
        plot_density(GaussianMixture(3, 2), ax)
