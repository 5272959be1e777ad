"""A deep convolutional Gaussian mixture that learns its parameters."""

__all__ = ["DCGMM"]

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as nnf
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.optim import SGD, Optimizer
from torch.types import _size

from ..core.batch import Batch, split_batch
from ..core.checks import check_choice, check_count, check_floor, check_positive_int, check_value
from .architecture import Architecture
from .given_class import ClassLaw, class_weights
from .inference import log_prob
from .law import TopDownLaw, draw, normal_log_prob, slices
from .layers import Layer
from .mixture_layer import MixtureLayer
from .outliers import Calibration
from .presets import PRESETS
from .queries import ImageQuestions
from .sampling import SampleOptions, draw_images

Noise = Literal["component", "shared"]

# Steps of plain SGD relative to those of centroids. Those of precisions are the published ones.
PRECISION_RATE = 0.5
WEIGHT_RATE = 1.0
CLASSIFIER_RATE = 20.0
NOISE_RATE = 1.0

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# Largest range of pixels, squared and times the largest precision, that SGD can start from.
LARGEST_RANGE = 1e4

# Images of a batch whose reconstruction tells the shared noise.
NOISE_IMAGES = 16


class DCGMM(ImageQuestions):
    r"""Deep convolutional Gaussian mixture model of images.

    Layers of mixtures, each of what a sliding window sees of the responsibilities of the one
    below (Gepperth and Pfülb, Image Modeling with Deep Convolutional Gaussian Mixture Models). It
    samples, completes, finds outliers and says where they are, and clusters, after minutes of
    training without any network.

    `sample` and `log_prob` share one law, from the top down. A top component k is drawn from
    the weights :math:`\pi`. Its centroid consists of slices, one for every position of the layer
    below, which are clipped, normalised and averaged where windows overlap: probabilities of that
    layer's codes. So it goes on down to the patches, whose centroids are averaged to a mean
    image, to which normal noise is added. `log_prob` is exact where codes form a tree (see
    `exact`), and elsewhere a lower bound, deterministic and differentiable, which `bound_steps`
    makes closer: see `pyromix.dcgmm.bound`. Draws have no pathwise gradient.

    `score`, `is_outlier`, `outlier_map`, `cluster`, `classify` and `encode` read the layers from
    the bottom up, as in the paper.

    Train it with `pyromix.fit`, whose defaults for it are plain SGD and a rate of 0.05: all
    layers at once, from random centroids (section II-B1). Pixels should lie between 0 and 1. The
    loss is the sum of the layers' negative log-likelihoods, smoothed over neighbouring components;
    in evaluation mode, as in validation, it is that of the law for the codes of `encode`.

    Args:
        event_shape: Channels, height and width of an image.
        layers: `Folding`, `Pooling`, `GMM` and `Classifier`, from the image upwards. The last one
            is a `GMM`, or a `Classifier` above it.
        noise: ``"component"``: pixels have the precisions of their patch's component, which takes
            patches that do not overlap, and is the default for those; ``"shared"``: one learned
            scale for all.
        max_precision: Largest precision, in inverse squared units of pixels and responsibilities.
            Small and clean images take more: 100 for digits of 8 x 8 pixels.
        bound_steps: Sweeps of coordinate ascent in the bound of `log_prob`.
        max_codes: The bound sums over the codes of layers above the bottom, from the top, as long
            as there are no more of them than this; those of a single top position always.
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
    default_lr: ClassVar[float] = 0.05
    pixel_range: Tensor

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
        if not isinstance(event_shape, Sequence) or len(event_shape) != 3:
            raise ValueError(
                f"Expected an event_shape (channels, height, width), got {event_shape!r}."
            )
        sides = [check_positive_int("every entry of event_shape", side) for side in event_shape]
        if not isinstance(layers, Sequence):
            raise ValueError(
                f"Expected layers to be a sequence such as [Folding(7), GMM(25)], got {layers!r}."
            )
        self.architecture = Architecture(sides, layers)
        check_floor("max_precision", max_precision)
        if not 0 <= centroid_share <= 1:
            raise ValueError(f"Expected centroid_share from 0 to 1, got {centroid_share}.")
        if noise is not None:
            check_choice("noise", noise, ("component", "shared"))
        if noise == "component" and not self.architecture.disjoint:
            raise ValueError(
                "Expected noise='shared' for patches that overlap: their components would all "
                "have a say in a pixel's noise. Leave it out, or fold without overlap."
            )
        super().__init__(event_shape=tuple(sides), validate_args=validate_args)
        self.layers = tuple(layers)
        self.noise = noise
        self.max_precision = float(max_precision)
        self.bound_steps = check_positive_int("bound_steps", bound_steps)
        self.max_codes = check_count("max_codes", max_codes)
        self.centroid_share = float(centroid_share)
        blocks = self.architecture.blocks
        self.mixtures = nn.ModuleList(
            [MixtureLayer(b.dim, b.num_components, self.max_precision) for b in blocks]
        )
        self.log_noise: nn.Parameter | None = None
        if noise == "shared" or not self.architecture.disjoint:
            self.log_noise = nn.Parameter(torch.zeros(()))
        self.classifier: nn.Linear | None = None
        if self.architecture.num_classes is not None:
            self.classifier = nn.Linear(blocks[-1].num_components, self.architecture.num_classes)
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)
        sizes = [block.size for block in blocks]
        self.calibration = Calibration(sizes)
        self.context_calibration = Calibration(sizes[:-1])
        self.register_buffer("pixel_range", torch.tensor([-torch.inf, torch.inf]))
        self._metrics: dict[str, float] = {}

    @classmethod
    def preset(
        cls,
        name: str,
        event_shape: Sequence[int] = (1, 28, 28),
        num_classes: int | None = None,
        **options: Any,
    ) -> Self:
        """A model of the paper's Table I.

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
        from .layers import Classifier

        check_choice("name", name, PRESETS)
        top = () if num_classes is None else (Classifier(num_classes),)
        return cls(event_shape, PRESETS[name] + top, **options)

    def summary(self) -> str:
        """A table of the shapes, layer by layer."""
        return self.architecture.summary()

    def extra_repr(self) -> str:
        """The shapes, layer by layer, and other arguments."""
        return f"noise={self.noise!r}, bound_steps={self.bound_steps}\n{self.summary()}"

    # ---- the law --------------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Whether `log_prob` is exact: every pixel in one patch, every code under one above."""
        return self.architecture.exact

    @property
    def noise_scale(self) -> Tensor | None:
        """Standard deviation of pixels, shape (); None with the components' own."""
        return None if self.log_noise is None else self.log_noise.exp()

    @property
    def law(self) -> TopDownLaw:
        """The law with the present parameters, and gradients to them."""
        blocks, mixtures = self.architecture.blocks, self._mixtures
        return TopDownLaw(
            architecture=self.architecture,
            log_weights=mixtures[-1].log_weights,
            control=tuple(
                slices(mixture.loc, block.dim // block.channels)
                for mixture, block in zip(mixtures[1:], blocks[1:], strict=True)
            ),
            loc=mixtures[0].loc,
            scale=mixtures[0].scale if self.log_noise is None else self.log_noise.exp(),
            sweeps=self.bound_steps,
            max_codes=self.max_codes,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of images ``(*S, C, H, W)``: shape (\*S). Exact, or a lower bound."""
        value = check_value(self, value, like=self._like)
        return log_prob(self.law, self._grid(value)).reshape(value.shape[:-3])

    def sample(
        self,
        sample_shape: _size = Size(),
        *,
        top_s: int | None = None,
        temperature: float = 1.0,
        sharpen_steps: int = 0,
        sharpen_rate: float | None = None,
        noise: bool = True,
    ) -> Tensor:
        r"""Draws images without a graph; by default from the law.

        Args:
            sample_shape: Shape S of the draws.
            top_s: How many of the likeliest codes take part at each position below the top.
            temperature: Controls of codes are raised to the inverse of it.
            sharpen_steps: Steps of gradient ascent that mend what each layer hands down.
            sharpen_rate: Step size of that; by default 2 / `max_precision`.
            noise: Whether pixels get their noise; without it images are means given codes.

        Returns:
            Tensor of shape ``(*S, C, H, W)``.
        """
        options = SampleOptions(top_s, temperature, sharpen_steps, sharpen_rate, noise)
        with torch.no_grad():
            law = self.law
            top = draw(law.top_weights(Size(sample_shape).numel()))
            images = draw_images(law, self._mixtures, top, options)
        return self._image(images).reshape(*sample_shape, *self.event_shape)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        """Raises an error: codes jump.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "A deep convolutional mixture has no pathwise gradients, as its codes are discrete: "
            "draw with sample()."
        )

    def decode(self, codes: Tensor) -> Tensor:
        r"""Mean images given the codes of the bottom patches.

        Args:
            codes: Integers, shape (\*S, positions), such as the first of `encode`.

        Returns:
            Tensor of shape ``(*S, C, H, W)``.

        Raises:
            ValueError: For codes of another shape or out of range.
        """
        bottom = self.architecture.blocks[0]
        good = isinstance(codes, Tensor) and codes.dtype == torch.int64 and codes.dim() > 0
        if not good or codes.shape[-1] != bottom.num_positions:
            raise ValueError(
                f"Expected integer codes of shape (*S, {bottom.num_positions}), as encode(x)[0] "
                f"returns them, got {getattr(codes, 'shape', codes)!r}."
            )
        low, high = (int(t) for t in codes.aminmax()) if codes.numel() else (0, 0)
        if low < 0 or high >= bottom.num_components:
            raise ValueError(
                f"Expected codes from 0 to {bottom.num_components - 1}, got {low} to {high}."
            )
        images = self._image(self.law.decode(codes.reshape(-1, codes.shape[-1])))
        return images.reshape(*codes.shape[:-1], *self.event_shape)

    # ---- classes ----------------------------------------------------------------------------

    def condition(self, context: Any) -> ClassLaw:
        r"""The law given a class, for models with a `Classifier` on top.

        .. math:: p(k \mid y) \propto \pi_k \, \operatorname{softmax}(W e_k + b)_y

        The classifier is read at responsibilities of one component alone. So it is inverted by
        Bayes' rule (the paper inverts it approximately, which gives no probabilities).

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
        """Log-probabilities of classes and top components, log p(y) p(k|y): shape (C, K)."""
        return class_weights(self._classifier, self._mixtures[-1].log_weights)

    def sample_class(self, label: Any, sample_shape: _size = Size(), **options: Any) -> Tensor:
        r"""Draws images of classes without a graph.

        Args:
            label: An integer, or integers of shape (\*B).
            sample_shape: Shape S of the draws.
            options: Those of `sample`.

        Returns:
            Tensor of shape ``(*S, *B, C, H, W)``.

        Raises:
            ValueError: Without a classifier, or for labels that there are not.
        """
        return self.condition(label).sample(sample_shape, **options)

    def class_log_prob(self, value: Tensor) -> Tensor:
        r"""Log-probabilities of classes, read from the bottom up.

        Args:
            value: Images, shape ``(*S, C, H, W)``.

        Returns:
            Tensor of shape (\*S, number of classes).

        Raises:
            ValueError: Without a classifier.
        """
        classifier = self._classifier
        value = self._checked(value)
        top = self._estimation.scores(self._grid(value))[-1].softmax(-1).flatten(1)
        log_prob = classifier(top).log_softmax(-1)
        return log_prob.reshape(*value.shape[:-3], classifier.out_features)

    def classify(self, value: Tensor) -> Tensor:
        r"""The most probable class of images: integers of shape (\*S)."""
        with torch.no_grad():
            return self.class_log_prob(value).argmax(-1)

    # ---- training ---------------------------------------------------------------------------

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:
        """What training minimises: see the class.

        Args:
            batch: Images (N, C, H, W), or with a classifier a pair of images and labels (N,).
            progress: How far training has come.
        """
        value, label = split_batch(batch)
        value = check_value(self, value, like=self._like).reshape(-1, *self.event_shape)
        if label is not None and self.classifier is None:
            raise ValueError(
                "Expected images alone, got a pair of images and labels. Add Classifier(10) as "
                "the last layer, say, or leave labels out."
            )
        grid = self._grid(value)
        if not self.training:
            return self._evaluation_loss(grid, label)
        centroids_only = progress < self.centroid_share
        activity, losses, codes = grid, [], torch.empty(0)
        self._metrics = {}
        for i, (block, mixture) in enumerate(
            zip(self.architecture.blocks, self._mixtures, strict=True), start=1
        ):
            loss, scores = mixture.training_loss(block.up(activity), centroids_only)
            if i == 1:
                codes = scores[:NOISE_IMAGES].argmax(-1).flatten(1)
            mixture.neighbourhood.observe(loss)
            losses.append(loss)
            # Every layer learns for itself: what it sees is data to it.
            activity = scores.softmax(-1)
            self._metrics[f"layer {i}"] = -loss.item()
        if self.log_noise is not None:
            with torch.no_grad():
                mean = self.law.decode(codes)
            fit = normal_log_prob(grid[:NOISE_IMAGES], mean, self.log_noise.exp())
            losses.append(-fit.mean() / self.event_shape.numel())
        if self.classifier is not None:
            losses.append(self._class_loss(activity, label))
        return torch.stack(losses).sum()

    def _evaluation_loss(self, grid: Tensor, label: Any) -> Tensor:
        """Minus the law's mean log-density of images with the codes of the way up."""
        scores = self._estimation.scores(grid)
        codes = [part.argmax(-1).flatten(1) for part in scores]
        loss = -self.law.joint_log_prob(grid, codes).mean()
        if self.classifier is not None:
            loss = loss + self._class_loss(scores[-1].softmax(-1), label)
        return loss

    def _class_loss(self, activity: Tensor, label: Any) -> Tensor:
        """Cross-entropy of the classifier."""
        assert self.classifier is not None
        count = self.classifier.out_features
        if not isinstance(label, Tensor) or label.dtype not in INTEGERS:
            raise ValueError(
                "Expected pairs of images and integer labels of shape (N,), as there is a "
                "Classifier: fit(model, (images, labels))."
            )
        if label.shape != activity.shape[:1]:
            raise ValueError(
                f"Expected one label for each of {len(activity)} images, got shape "
                f"{tuple(label.shape)}."
            )
        if label.numel() and not 0 <= int(label.min()) <= int(label.max()) < count:
            raise ValueError(
                f"Expected labels from 0 to {count - 1}, got {int(label.min())} to "
                f"{int(label.max())}."
            )
        label = label.long()
        logits = self.classifier(activity.flatten(1))
        if self.training:
            accuracy = (logits.argmax(-1) == label).double().mean()
            self._metrics["class accuracy"] = accuracy.item()
        return nnf.cross_entropy(logits, label)

    def metrics(self) -> dict[str, float]:
        """Of the last step: what each layer maximised, and the share of classes recognised.

        The former is the mean of the largest of its smoothed scores; late in training, when hardly
        anything is smoothed, it is nearly the log-likelihood.
        """
        return self._metrics

    def make_optimizer(self, lr: float) -> Optimizer:
        """Plain SGD; relative to centroids, others have rates of their own."""
        groups: dict[float, list[nn.Parameter]] = {1.0: []}  # first: its rate is what is recorded
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(_relative_rate(name), []).append(parameter)
        return SGD([{"params": p, "lr": lr * rate} for rate, p in groups.items()], lr=lr)

    @property
    def scheduled(self) -> bool:
        """Whether `anneal` changes anything: it does."""
        return True

    def anneal(self, progress: float) -> None:
        """Shrinks neighbourhoods in time, and clips precisions."""
        for mixture in self._mixtures:
            mixture.neighbourhood.limit(progress / max(self.centroid_share, 1e-12))
            mixture.clip()

    def stage(self, progress: float) -> str:
        """Name of the stage of training."""
        return "centroids" if progress < self.centroid_share else "centroids and precisions"

    def initialize(self, data: Batch) -> None:
        """Takes note of the range of the pixels; centroids start at random.

        Args:
            data: Images (N, C, H, W), or a pair of them and labels.
        """
        value, _ = split_batch(data)
        value = check_value(self, value, like=self._like)
        low, high = (float(t) for t in value.aminmax())
        if (high - low) ** 2 * self.max_precision > LARGEST_RANGE:
            raise ValueError(
                f"Expected pixels in units of about one, got a range from {low:.3g} to "
                f"{high:.3g}. Divide bytes by 255."
            )
        self.pixel_range.copy_(torch.stack(value.aminmax()))
        super().initialize(data)

    # ---- helpers ----------------------------------------------------------------------------

    @property
    def _classifier(self) -> nn.Linear:
        if self.classifier is None:
            raise ValueError(
                "This model has no classes: add Classifier(10) as the last layer, say, or pass "
                "num_classes to preset."
            )
        return self.classifier


def _relative_rate(name: str) -> float:
    """Learning rate of a parameter, relative to that of centroids."""
    kinds = {
        "loc": 1.0,
        "log_precision": PRECISION_RATE,
        "logits": WEIGHT_RATE,
        "log_noise": NOISE_RATE,
    }
    return kinds.get(name.rpartition(".")[-1], CLASSIFIER_RATE)
