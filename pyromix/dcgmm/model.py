"""A deep convolutional Gaussian mixture that learns its parameters."""

__all__ = ["DCGMM"]

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, Unpack

import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from ..core.checks import (
    Check,
    check_arguments,
    check_choice,
    check_count,
    check_floor,
    check_positive_int,
    check_value,
    number,
    one_of,
    optional,
)
from ..core.conversions import TensorLike
from ..core.draws import without_graph
from ..core.random import takes_generator
from .architecture import Architecture, check_image_shape, check_layers
from .given_class import ClassLaw, class_weights
from .inference import log_prob
from .law import TopDownLaw, draw, slices
from .layers import Classifier, Layer
from .presets import PRESETS
from .queries import ImageQueries
from .sampling import SampleArguments, SampleOptions
from .training import LayerTraining

Noise = Literal["component", "shared"]


def check_share(name: str, value: float) -> float:
    """Checks that an argument is a number from 0 to 1, and returns it as a `float`.

    Raises:
        ValueError: If it is not.
    """
    if not 0 <= number()(name, value) <= 1:
        raise ValueError(f"Expected {name} from 0 to 1, got {value}.")
    return float(value)


class DCGMM(ImageQueries, LayerTraining):
    r"""Deep convolutional Gaussian mixture model of images.

    .. math:: p(x) = \sum_c p(c) \prod_i N\big(x_i \mid m_i(c), \sigma_i^2(c)\big)

    Layers of mixtures, each of what a sliding window sees of the responsibilities of the layer
    below (Gepperth and Pfülb, Image Modeling with Deep Convolutional Gaussian Mixture Models). The
    model draws and completes images, finds outliers and where in an image they are, and clusters
    images. It has no neural network, and is trained in minutes.

    `sample` and `log_prob` share one law of codes c and pixels x, from the top down. A component
    of the top layer is drawn from the weights :math:`\pi`. Its centroid consists of slices, one
    for every position of the layer below. They are clipped, normalised, and averaged where
    windows overlap: the results are the probabilities of that layer's codes. This is repeated
    down to the patches of the bottom layer. Their centroids are averaged to a mean image m(c), to
    which normal noise of standard deviations :math:`\sigma(c)` is added. `log_prob` is exact where
    codes form a tree (see `exact`). Elsewhere it is a lower bound, deterministic and
    differentiable, which is closer with more `bound_steps`: see `pyromix.dcgmm.bound`. Draws have
    no pathwise gradient.

    `score`, `is_outlier`, `outlier_map`, `cluster`, `classify` and `encode` read the layers from
    the bottom up, as in the paper.

    Train it with `pyromix.fit`, whose defaults for it are plain SGD and a rate of 0.05: all
    layers at once, from random centroids (section II-B1). Pixels should lie between 0 and 1. The
    loss is the sum of the layers' negative log-likelihoods, smoothed over neighbouring components.
    In evaluation mode, as in validation, it is minus the law's joint log-density of images and the
    codes of `encode`.

    Args:
        event_shape: Channels, height and width of an image.
        layers: `Folding`, `Pooling`, `GMM` and `Classifier`, from the image upwards. The last one
            is a `GMM`, or a `Classifier` above it.
        noise: ``"component"``: pixels have the precisions of their patch's component, which takes
            patches that do not overlap, and is the default for those; ``"shared"``: one learned
            scale for all.
        max_precision: Largest precision, in inverse squared units of pixels and responsibilities.
            For small images without noise, set it higher: to 100 for digits of 8 x 8 pixels.
        bound_steps: Number of sweeps of coordinate ascent in the bound of `log_prob`.
        max_codes: The bound enumerates the codes of layers above the bottom, from the top
            downwards, as long as there are at most so many. Codes of a single top position are
            always enumerated.
        centroid_share: Share of training in which only centroids learn, and neighbourhoods shrink.
        validate_args: Whether to check the values that are scored.

    Raises:
        ValueError: For layers that do not fit each other or the image, and numbers out of range.

    Example:
        >>> from pyromix import fit
        >>> from pyromix.dcgmm import GMM, Folding
        >>> _ = torch.manual_seed(0)
        >>> images = torch.rand(200, 1, 4, 4)
        >>> model = DCGMM((1, 4, 4), [Folding(2), GMM(4), Folding(2), GMM(9)])
        >>> history = fit(model, images, steps=50, progress_bar=False)
        >>> model.sample((3,)).shape, model.log_prob(images[:5]).shape, model.exact
        (torch.Size([3, 1, 4, 4]), torch.Size([5]), True)
    """

    support = constraints.independent(constraints.real, 3)
    argument_checks: ClassVar[Mapping[str, Check]] = {
        "event_shape": check_image_shape,
        "layers": check_layers,
        "noise": optional(one_of("component", "shared")),
        "max_precision": lambda name, value: float(check_floor(name, value)),
        "bound_steps": check_positive_int,
        "max_codes": check_count,
        "centroid_share": check_share,
    }
    layers: tuple[Layer, ...]
    noise: Noise | None
    bound_steps: int
    max_codes: int

    def __init__(
        self,
        event_shape: Sequence[int],
        layers: Sequence[Layer],
        *,
        noise: Noise | None = None,
        max_precision: float = 20.0,
        bound_steps: int = 5,
        max_codes: int = 256,
        centroid_share: float = 0.5,
        validate_args: bool | None = None,
    ) -> None:
        arguments = check_arguments(self.argument_checks, locals())
        architecture = Architecture(arguments.pop("event_shape"), arguments["layers"])
        if noise == "component" and not architecture.disjoint:
            raise ValueError(
                "Expected noise='shared' for patches that overlap: the noise of a pixel would "
                "depend on several components. Leave it out, or fold without overlap."
            )
        shared_noise = noise == "shared" or not architecture.disjoint
        super().__init__(architecture, shared_noise, arguments["max_precision"], validate_args)
        self.keep_arguments(arguments)
        self._metrics = {}

    @classmethod
    def preset(
        cls,
        name: str,
        event_shape: Sequence[int] = (1, 28, 28),
        num_classes: int | None = None,
        **options: Any,
    ) -> Self:
        """Returns a model of the paper's Table I, with random parameters.

        Args:
            name: ``"1L"``, ``"2L-a"`` to ``"2L-e"``, ``"3L-a"`` or ``"3L-b"``. The last fold of
                3L-a, printed as 6 x 6, is read as 5 x 5, which is all that its layers leave.
            event_shape: Channels, height and width of an image. The windows are made for 28 x 28.
            num_classes: Number of classes of a classifier on top; none by default.
            options: Further arguments of the constructor.

        Raises:
            ValueError: For an unknown name, or images that the windows do not fit.

        Example:
            >>> print(DCGMM.preset("2L-c").summary())  # doctest: +NORMALIZE_WHITESPACE
                 image                              28 x 28        1 channels
              1  Folding 8 x 8, stride 2 x 2       11 x 11       64 channels
              2  GMM 25                            11 x 11       25 channels
              3  Folding 11 x 11, stride 11 x 11    1 x 1      3025 channels
              4  GMM 36                             1 x 1        36 channels
        """
        check_choice("name", name, PRESETS)
        top = () if num_classes is None else (Classifier(num_classes),)
        return cls(event_shape, PRESETS[name] + top, **options)

    def summary(self) -> str:
        """Returns a table of the shapes, a line for each layer."""
        return self.architecture.summary()

    def extra_repr(self) -> str:
        """Returns what `repr` shows: arguments and a table of the shapes."""
        return f"noise={self.noise!r}, bound_steps={self.bound_steps}\n{self.summary()}"

    # ---- the law --------------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Whether `log_prob` is exact: every pixel is in one patch, every code under one code."""
        return self.architecture.exact

    def _law_given(self) -> TopDownLaw:
        blocks, mixtures = self.architecture.blocks, self._mixtures
        return TopDownLaw(
            architecture=self.architecture,
            log_weights=mixtures[-1].log_weights,
            control=tuple(
                slices(mixture.loc, block.num_slices)
                for mixture, block in zip(mixtures[1:], blocks[1:], strict=True)
            ),
            loc=mixtures[0].loc,
            scale=mixtures[0].scale if self.log_noise is None else self.log_noise.exp(),
            sweeps=self.bound_steps,
            max_codes=self.max_codes,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Returns the log-density of images, or a lower bound of it: see `exact`.

        Args:
            value: Images, shape ``(*S, C, H, W)``.

        Returns:
            Tensor of shape (\*S).
        """
        value = check_value(self, value, like=self._like)
        return log_prob(self.law, self._grid(value)).reshape(value.shape[:-3])

    @without_graph
    @takes_generator
    def sample(
        self,
        sample_shape: _size = Size(),
        *,
        generator: Generator | None = None,
        **options: Unpack[SampleArguments],
    ) -> Tensor:
        r"""Draws images without a graph; by default from the law.

        Args:
            sample_shape: Shape S of the draws.
            options: How draws differ from those of the law, for which there is no density.
            generator: Where random numbers come from; by default PyTorch's global generator.

                - `top_s`: how many of the likeliest codes take part at each position below the
                  top; by default all.
                - `temperature`: probabilities of codes are raised to the inverse of it, before
                  one is drawn; by default 1.
                - `sharpen_steps`: steps of gradient ascent in the likelihood of what each folding
                  or pooling hands down (the paper's section II-B3); by default 0.
                - `sharpen_rate`: step size of these; by default 2 / `max_precision`, which is the
                  paper's 0.1 for 20.
                - `noise`: whether pixels get their noise; by default True. Without it, images are
                  means given codes.

        Returns:
            Tensor of shape ``(*S, C, H, W)``.

        Raises:
            ValueError: For options out of range.
        """
        checked = SampleOptions(**options)
        law = self.law
        top = draw(law.top_weights(Size(sample_shape).numel()))
        images = self._draw(law, top, checked)
        return images.reshape(*sample_shape, *self.event_shape)

    @takes_generator
    def rsample_with_score(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws with the gradient that they have given their codes, and scores of these.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Images of shape ``(*S, C, H, W)``, and log-probabilities of their codes, shape (\*S);
            see `MixtureOfNormals.rsample_with_score`.
        """
        images, score = self.law.draw_with_score(Size(sample_shape).numel())
        images = self._image(images).reshape(*sample_shape, *self.event_shape)
        return images, score.reshape(sample_shape)

    @property
    def mean(self) -> Tensor:
        """Not available: average draws of `sample` instead.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("The mean of images is not available: average draws.")

    @property
    def variance(self) -> Tensor:
        """Not available: take the variance of draws of `sample` instead.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("The variance of images is not available: take that of draws.")

    def rsample(
        self,
        sample_shape: _size = Size(),
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Not available: the codes are discrete, so draws have no pathwise gradient.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "A deep convolutional mixture has no pathwise gradients, as its codes are discrete: "
            "draw with sample()."
        )

    # ---- classes ----------------------------------------------------------------------------

    def condition(self, context: Any) -> ClassLaw:
        r"""Returns the law given a class, for models with a `Classifier` on top.

        .. math:: p(k \mid y) \propto \pi_k \, \operatorname{softmax}(W e_k + b)_y

        The classifier gives the probabilities of classes for each top component alone. Bayes'
        rule turns them into probabilities of components. (The paper inverts the classifier
        approximately, which gives no probabilities.)

        Args:
            context: Labels: an integer, or integers of shape (\*B), from 0 to C - 1.

        Returns:
            A distribution of batch shape B over images.

        Raises:
            ValueError: Without a classifier, or for labels that there are not.
        """
        return ClassLaw(self, context)

    @property
    def class_log_weights(self) -> Tensor:
        """Log-probabilities of classes and top components, log p(y) p(k|y): shape (C, K).

        Raises:
            ValueError: Without a classifier.
        """
        return class_weights(self._classifier, self._mixtures[-1].log_weights)

    @takes_generator
    def sample_class(
        self,
        label: TensorLike,
        sample_shape: _size = Size(),
        *,
        generator: Generator | None = None,
        **options: Unpack[SampleArguments],
    ) -> Tensor:
        r"""Draws images of classes without a graph.

        Args:
            label: An integer, or integers of shape (\*B).
            sample_shape: Shape S of the draws.
            options: Those of `sample`.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensor of shape ``(*S, *B, C, H, W)``.

        Raises:
            ValueError: Without a classifier, or for labels that there are not.
        """
        return self.condition(label).sample(sample_shape, **options)

    def class_log_prob(self, value: TensorLike) -> Tensor:
        r"""Returns log-probabilities of classes, read from the bottom up.

        Args:
            value: Images, shape ``(*S, C, H, W)``.

        Returns:
            Tensor of shape (\*S, number of classes).

        Raises:
            ValueError: Without a classifier.
        """
        classifier = self._classifier
        value = self._check_images(value)
        top = self._reader.scores(self._grid(value))[-1].softmax(-1).flatten(1)
        log_prob = classifier(top).log_softmax(-1)
        return log_prob.reshape(*value.shape[:-3], classifier.out_features)

    def classify(self, value: TensorLike) -> Tensor:
        r"""Returns the most probable class of images.

        Args:
            value: Images, shape ``(*S, C, H, W)``.

        Returns:
            Integers of shape (\*S).

        Raises:
            ValueError: Without a classifier.
        """
        with torch.no_grad():
            return self.class_log_prob(value).argmax(-1)
