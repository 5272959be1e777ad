"""What can be asked about images, beside their density."""

__all__ = ["ImageQuestions"]

import math
import warnings

import torch
from torch import Tensor, nn

from ..core.checks import as_int, check_positive_int, check_value, check_value_shape, is_traced
from ..core.module import DistributionModule
from ..numerics.diagonal_density import log_sum_exp
from .architecture import Architecture
from .completion import fill, find_known
from .estimation import Estimation
from .law import TopDownLaw, draw
from .mixture_layer import MixtureLayer
from .outliers import Calibration
from .sampling import SampleOptions, draw_images

# Pixels beyond the range of the training data by this share of it are worth a warning.
MARGIN = 0.5


class ImageQuestions(DistributionModule):
    """Layers of mixtures that are read from the bottom up, and complete and vary images.

    The model that derives from it has the layers, and the law.
    """

    architecture: Architecture
    mixtures: nn.ModuleList
    calibration: Calibration
    context_calibration: Calibration
    pixel_range: Tensor

    @property
    def law(self) -> TopDownLaw:
        """The law with the present parameters, and gradients to them."""
        raise NotImplementedError

    def encode(self, value: Tensor) -> tuple[Tensor, ...]:
        r"""The most responsible components, read from the bottom up.

        Args:
            value: Images, shape ``(*S, C, H, W)``.

        Returns:
            For every layer of mixtures, from the bottom, integers of shape (\*S, positions).
        """
        value = self._checked(value)
        with torch.no_grad():
            codes = [
                scores.argmax(-1).flatten(1)
                for scores in self._estimation.scores(self._grid(value))
            ]
        return tuple(code.reshape(*value.shape[:-3], code.shape[-1]) for code in codes)

    # ---- the layers, from the bottom up -----------------------------------------------------

    def layer_log_likelihoods(self, value: Tensor) -> tuple[Tensor, ...]:
        r"""Log-likelihood of what every layer of mixtures sees at each of its positions.

        .. math:: \log \sum_k \pi_k N_k(A_{hw})  \qquad \text{(eq. 5)}

        Args:
            value: Images, shape ``(*S, C, H, W)``.

        Returns:
            For every layer of mixtures, from the bottom, a tensor of shape (\*S, rows, columns).
        """
        value = self._checked(value)
        return tuple(
            log_sum_exp(scores).reshape(*value.shape[:-3], *scores.shape[1:3])
            for scores in self._estimation.scores(self._grid(value))
        )

    def score(self, value: Tensor) -> Tensor:
        r"""Log-likelihood of the top layer, summed over its positions: shape (\*S).

        The lower, the less does an image look like the training data. It is no density of images:
        that is `log_prob`.
        """
        return self.layer_log_likelihoods(value)[-1].sum((-1, -2))

    def calibrate(self, data: Tensor, batch_size: int = 256) -> None:
        """Takes note of the mean and spread of each layer's and position's log-likelihood.

        So it does of how well they agree with what the top layer expects of them.

        Args:
            data: Images that are no outliers, such as the training data, shape (N, C, H, W).
            batch_size: Images that are worked on together.

        Raises:
            ValueError: For fewer than two images.
        """
        data = self._checked(data).reshape(-1, *self.event_shape)
        batches = self._grid(data).split(check_positive_int("batch_size", batch_size))
        with torch.no_grad():
            self._estimation.calibrate(list(batches))

    def is_outlier(self, value: Tensor, threshold: float = 2.0) -> Tensor:
        r"""Whether images are unlike those of `calibrate`, at any of the top positions (eq. 6).

        Args:
            value: Images, shape ``(*S, C, H, W)``.
            threshold: Standard deviations below the mean at which outliers begin.

        Returns:
            Boolean tensor of shape (\*S).

        Raises:
            RuntimeError: Before `calibrate`.
        """
        value = self._checked(value)
        with torch.no_grad():
            estimation = self._estimation
            deviations = estimation.deviations(estimation.scores(self._grid(value)), -1)
            return (deviations > threshold).any(-1).any(-1).reshape(value.shape[:-3])

    def outlier_map(self, value: Tensor, layer: int = 0, context: bool = False) -> Tensor:
        r"""How unlike those of `calibrate` each place of an image is.

        Args:
            value: Images, shape ``(*S, C, H, W)``.
            layer: Layer of mixtures, from 0 at the bottom.
            context: Whether a place is judged by how well the codes that it shows agree with what
                the top layer, which saw all of the image, expects there, instead of by their
                likelihood: this finds, say, that the middle of a stroke is blank. Not for the top
                layer.

        Returns:
            Standard deviations by which likelihood or agreement falls short of its mean, averaged
            over the windows that see a pixel: shape ``(*S, H, W)``.

        Raises:
            RuntimeError: Before `calibrate`.
            ValueError: For a layer that there is not, or the context of the top layer.
        """
        count, index = len(self.architecture.blocks), as_int(layer)
        if index is None or not -count <= index < count:
            raise ValueError(f"Expected a layer of mixtures from 0 to {count - 1}, got {layer!r}.")
        layer = index % count
        if context and layer == count - 1:
            raise ValueError(
                "Expected a layer below the top with context=True: nothing is above the top."
            )
        value, estimation = self._checked(value), self._estimation
        with torch.no_grad():
            scores = estimation.scores(self._grid(value))
            deviations = estimation.deviations(scores, layer, context)
            pixels = estimation.over_pixels(deviations, layer)
        return pixels.reshape(*value.shape[:-3], *value.shape[-2:])

    def cluster(self, value: Tensor) -> Tensor:
        r"""The most responsible top component: integers of shape (\*S).

        Raises:
            ValueError: If the top layer has several positions.
        """
        codes = self.encode(value)[-1]
        if codes.shape[-1] != 1:
            raise ValueError(
                f"Expected a top layer with one position to cluster by, got {codes.shape[-1]}. "
                f"encode(x)[-1] has the codes of all of them."
            )
        return codes.squeeze(-1)

    # ---- questions --------------------------------------------------------------------------

    def inpaint(
        self,
        value: Tensor,
        mask: Tensor | None = None,
        num_samples: int | None = None,
        *,
        threshold: float = 3.0,
        temperature: float = 1.0,
        noise: bool = False,
    ) -> Tensor:
        r"""Completes images whose pixels are partly missing or corrupted.

        Codes are inferred from the pixels that are known, under the law: exactly, or in the
        approximation behind `log_prob`.

        Args:
            value: Images, shape ``(*S, C, H, W)``. Where the mask says that pixels are unknown
                they are not looked at, and may be NaN.
            mask: True where pixels are known, shape ``(*S, H, W)``, or one that broadcasts to the
                images'. Without one, they are taken to be corrupted where the `outlier_map` of
                the bottom layer, by itself or in context, exceeds `threshold`: repeatedly, as
                what they are completed to tells the top layer more.
            num_samples: Number of draws of what is missing; by default its mean is returned.
            threshold: Standard deviations at which corruption begins, without a mask.
            temperature: By what to multiply the variances of known pixels in the inference. The
                law takes the errors of neighbouring pixels for independent, and is more certain of
                what an image is than it should be: means of several candidates are nearer on
                average.
            noise: Whether draws get the pixels' noise.

        Returns:
            Images of the same shape, or ``(num_samples, *S, C, H, W)``; known pixels as they were.

        Raises:
            ValueError: For a mask of another kind or shape, or NaN among known pixels.
                Without a mask, for a bottom layer that sees the image as one patch.
            RuntimeError: Without a mask, before `calibrate`.
        """
        value = check_value_shape(self, value, like=self._like)
        if num_samples is not None:
            num_samples = check_positive_int("num_samples", num_samples)
        if not 0 < temperature < math.inf:
            raise ValueError(f"Expected a positive, finite temperature, got {temperature}.")
        with torch.no_grad():
            if mask is None:
                known = self._image(self._find_known(self._checked(value), threshold))
                known = known.reshape(value.shape)
            else:
                known = self._known(value, mask)
            blank = float(value.new_zeros(()).clamp(*self.pixel_range))
            images = self._checked(torch.where(known, value, blank))
            grids = self._grid(images), self._grid(known)
            filled = fill(self.law, *grids, num_samples, temperature, noise)
            filled = self._image(filled).reshape(len(filled), *value.shape)
            completed = torch.where(known, value, filled)
        return completed.squeeze(0) if num_samples is None else completed

    def variants(
        self,
        value: Tensor,
        similarity: int = 1,
        num_samples: int = 8,
        *,
        top_s: int | None = None,
        temperature: float = 1.0,
        sharpen_steps: int = 0,
        sharpen_rate: float | None = None,
        noise: bool = False,
    ) -> Tensor:
        r"""Draws images like given ones (the paper's section II-B6).

        Args:
            value: Images, shape ``(*S, C, H, W)``.
            similarity: In how many layers of mixtures, from the top, codes are drawn given the
                image; below them they are drawn from the top down. Zero: all are.
            num_samples: Number of draws for each image.
            top_s: See `sample`; so are the others.
            temperature: See `sample`.
            sharpen_steps: See `sample`.
            sharpen_rate: See `sample`.
            noise: See `sample`.

        Returns:
            Tensor of shape ``(num_samples, *S, C, H, W)``.

        Raises:
            ValueError: For a similarity that is no number of layers.
        """
        layers = len(self.architecture.blocks)
        num_samples = check_positive_int("num_samples", num_samples)
        if as_int(similarity) not in range(layers + 1):
            raise ValueError(
                f"Expected a similarity from 0 to {layers}, the number of layers of mixtures, got "
                f"{similarity!r}."
            )
        options = SampleOptions(top_s, temperature, sharpen_steps, sharpen_rate, noise)
        value = self._checked(value)
        with torch.no_grad():
            law = self.law
            activities = [
                scores.softmax(-1).flatten(1, 2).repeat(num_samples, 1, 1)
                for scores in reversed(self._estimation.scores(self._grid(value)))
            ]
            top = draw(activities[0] if similarity else law.top_weights(len(activities[0])))
            given = activities[1:similarity]
            images = draw_images(law, self._mixtures, top, options, given)
        return self._image(images).reshape(num_samples, *value.shape)

    # ---- helpers ---------------------------------------------------------------------------

    @property
    def _mixtures(self) -> list[MixtureLayer]:
        return list(self.mixtures)  # type: ignore[arg-type]

    @property
    def _estimation(self) -> Estimation:
        return Estimation(self.law, self._mixtures, self.calibration, self.context_calibration)

    @property
    def _like(self) -> Tensor:
        return self._mixtures[0].loc

    def _grid(self, images: Tensor) -> Tensor:
        """Images (*S, C, H, W) as (N, H, W, C)."""
        return images.reshape(-1, *self.event_shape).movedim(1, -1)

    def _image(self, grid: Tensor) -> Tensor:
        """Channels last to channels first."""
        return grid.movedim(-1, -3)

    def _checked(self, value: Tensor) -> Tensor:
        """Checks images, and warns of pixels that are far from those of training."""
        value = check_value(self, value, like=self._like)
        if not is_traced() and value.numel():
            low, high = (float(t) for t in self.pixel_range)
            least, most = (float(t) for t in value.detach().aminmax())
            margin = MARGIN * (high - low)
            if least < low - margin or most > high + margin:
                warnings.warn(
                    f"Pixels range from {least:.3g} to {most:.3g}, those of the training data "
                    f"from {low:.3g} to {high:.3g}. Scale images as for training.",
                    stacklevel=3,
                )
        return value

    def _find_known(self, value: Tensor, threshold: float) -> Tensor:
        """Which pixels are not corrupted: a boolean tensor (N, H, W, C)."""
        if self.architecture.blocks[0].num_positions == 1:
            raise ValueError(
                "Expected a mask: the bottom layer sees the image as one patch, and cannot say "
                "which part of it is corrupted. Use smaller windows for that."
            )
        return find_known(self._estimation, self._grid(value), threshold)

    def _known(self, value: Tensor, mask: Tensor) -> Tensor:
        """Which pixels are known: a boolean tensor of the shape of the images."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise ValueError(
                "Expected a boolean mask, True where pixels are known; pass mask.bool()."
            )
        if value.dim() > 3 and mask.shape == (*value.shape[:-3], *value.shape[-2:]):
            if mask.shape[-3] == value.shape[-3] > 1:
                raise ValueError(
                    f"Expected a mask that says whether it is of images or of channels, got shape "
                    f"{tuple(mask.shape)}, and there are as many of both. Insert a dimension of "
                    f"size 1."
                )
            mask = mask.unsqueeze(-3)
        try:
            known = mask.expand(value.shape)
        except RuntimeError:
            raise ValueError(
                f"Expected a mask that broadcasts to the images' shape {tuple(value.shape)}, got "
                f"{tuple(mask.shape)}."
            ) from None
        if bool((known & value.isnan()).any()):
            raise ValueError("Expected no NaN among the pixels that the mask calls known.")
        return known
