"""What can be asked about images, beside their density."""

__all__ = ["ImageQueries"]

from typing import Unpack

import torch
from torch import Generator, Tensor

from ..core.checks import (
    as_int,
    check_index,
    check_positive_int,
    check_value_shape,
)
from ..core.conversions import TensorLike, as_integers, as_tensor
from ..core.random import takes_generator
from ..numerics.diagonal_density import log_sum_exp
from .completion import expand_mask, fill, find_evidence
from .law import draw
from .mixture_stack import MixtureStack
from .sampling import SampleArguments, SampleOptions, check_positive


class ImageQueries(MixtureStack):
    """Queries about images: what layers see in them, outliers, clusters, classes, completion."""

    # ---- the layers, from the bottom up -----------------------------------------------------

    def encode(self, value: TensorLike) -> tuple[Tensor, ...]:
        r"""Returns the most responsible components, read from the bottom up.

        Args:
            value: Images, shape ``(*S, C, H, W)``.

        Returns:
            For every layer of mixtures, from the bottom, integers of shape (\*S, positions).
        """
        value = self._check_images(value)
        with torch.no_grad():
            codes = [
                scores.argmax(-1).flatten(1) for scores in self._reader.scores(self._grid(value))
            ]
        return tuple(code.reshape(*value.shape[:-3], code.shape[-1]) for code in codes)

    def decode(self, codes: TensorLike) -> Tensor:
        r"""Returns mean images given the codes of the bottom patches.

        Args:
            codes: Integers, shape (\*S, positions), such as the first of `encode`.

        Returns:
            Tensor of shape ``(*S, C, H, W)``.

        Raises:
            ValueError: For codes of another shape or out of range.
        """
        bottom = self.architecture.blocks[0]
        if isinstance(codes, tuple):  # those of all layers
            raise ValueError("Expected the codes of one layer, encode(x)[0], got a tuple.")
        found = as_integers("codes", codes, 0, bottom.num_components - 1, like=self._like)
        if found.shape[-1:] != (bottom.num_positions,):
            raise ValueError(
                f"Expected codes of shape (*S, {bottom.num_positions}), as encode(x)[0] returns "
                f"them, got {tuple(found.shape)}."
            )
        images = self._image(self.law.decode(found.reshape(-1, bottom.num_positions)))
        return images.reshape(*found.shape[:-1], *self.event_shape)

    def layer_log_likelihoods(self, value: TensorLike) -> tuple[Tensor, ...]:
        r"""Returns the log-likelihood of what every layer sees at each of its positions.

        .. math:: \log \sum_k \pi_k N_k(A_{hw})  \qquad \text{(eq. 5)}

        Args:
            value: Images, shape ``(*S, C, H, W)``.

        Returns:
            For every layer of mixtures, from the bottom, a tensor of shape (\*S, rows, columns).
        """
        value = self._check_images(value)
        return tuple(
            log_sum_exp(scores).reshape(*value.shape[:-3], *scores.shape[1:3])
            for scores in self._reader.scores(self._grid(value))
        )

    def score(self, value: TensorLike) -> Tensor:
        r"""Returns the log-likelihood of the top layer, summed over its positions.

        The lower it is, the less does an image look like the training data. It is no density of
        images: that is `log_prob`.

        Args:
            value: Images, shape ``(*S, C, H, W)``.

        Returns:
            Tensor of shape (\*S).
        """
        return self.layer_log_likelihoods(value)[-1].sum((-1, -2))

    def calibrate(self, data: TensorLike, batch_size: int = 256) -> None:
        """Measures images that are no outliers; `is_outlier` and `outlier_map` compare with them.

        For each layer and position it keeps mean and standard deviation of the log-likelihood, and
        of how well responsibilities agree with those that the top layer expects there.

        Args:
            data: Images such as the training data, shape (N, C, H, W).
            batch_size: Number of images that are processed together.

        Raises:
            ValueError: For fewer than two images.
        """
        data = self._check_images(data).reshape(-1, *self.event_shape)
        batches = self._grid(data).split(check_positive_int("batch_size", batch_size))
        with torch.no_grad():
            self._reader.calibrate(list(batches))

    def is_outlier(self, value: TensorLike, threshold: float = 2.0) -> Tensor:
        r"""Returns whether images are unlike those of `calibrate` (eq. 6).

        They are, if the log-likelihood at any position of the top layer is far below its mean.

        Args:
            value: Images, shape ``(*S, C, H, W)``.
            threshold: Standard deviations below the mean at which outliers begin.

        Returns:
            Boolean tensor of shape (\*S).

        Raises:
            RuntimeError: Before `calibrate`.
        """
        value = self._check_images(value)
        with torch.no_grad():
            reader = self._reader
            deviations = reader.deviations(reader.scores(self._grid(value)), -1)
            return (deviations > threshold).any(-1).any(-1).reshape(value.shape[:-3])

    def outlier_map(self, value: TensorLike, layer: int = 0, context: bool = False) -> Tensor:
        r"""Returns how unlike the images of `calibrate` every pixel's surroundings are.

        Args:
            value: Images, shape ``(*S, C, H, W)``.
            layer: Layer of mixtures, from 0 at the bottom, or from -1 at the top.
            context: Whether to measure how well responsibilities agree with those that the top
                layer, which has seen all of the image, expects at this position, instead of the
                log-likelihood. This finds that the middle of a stroke is blank, for example. Not
                for the top layer.

        Returns:
            Number of standard deviations by which log-likelihood or agreement is below its mean,
            averaged over the windows that see a pixel: shape ``(*S, H, W)``.

        Raises:
            RuntimeError: Before `calibrate`.
            ValueError: For a layer that there is not, or the context of the top layer.
        """
        count = len(self.architecture.blocks)
        layer = check_index("layer", layer, count)
        if context and layer == count - 1:
            raise ValueError(
                "Expected a layer below the top with context=True: nothing is above the top."
            )
        value, reader = self._check_images(value), self._reader
        with torch.no_grad():
            scores = reader.scores(self._grid(value))
            measure = reader.context_deviations if context else reader.deviations
            pixels = reader.over_pixels(measure(scores, layer), layer)
        return pixels.reshape(*value.shape[:-3], *value.shape[-2:])

    def cluster(self, value: TensorLike) -> Tensor:
        r"""Returns the most responsible component of the top layer.

        Args:
            value: Images, shape ``(*S, C, H, W)``.

        Returns:
            Integers of shape (\*S).

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

    # ---- completion and variation -----------------------------------------------------------

    @takes_generator
    def inpaint(
        self,
        value: TensorLike,
        mask: TensorLike | None = None,
        num_samples: int | None = None,
        *,
        threshold: float = 3.0,
        temperature: float = 1.0,
        noise: bool = False,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Returns images in which missing or corrupted pixels are replaced.

        Codes are inferred from the evidence, the pixels that are known, under the law: exactly,
        or in the approximation behind `log_prob`.

        Args:
            value: Images, shape ``(*S, C, H, W)``. Pixels that the mask says are unknown are not
                used, and may be NaN.
            mask: True where pixels are known, shape ``(*S, H, W)``, or one that broadcasts to the
                images'. Without one, pixels are taken to be corrupted where the `outlier_map` of
                the bottom layer, by itself or in context, exceeds `threshold`: repeatedly, as
                the completed image tells the top layer more.
            num_samples: Number of draws of what is missing; by default its mean is returned.
            threshold: Standard deviations at which corruption begins, without a mask.
            temperature: By what to multiply the variances of known pixels in the inference. The
                law treats the errors of neighbouring pixels as independent, and so is more certain
                of the codes than it should be. With a temperature above one, the result is a mean
                over more codes, which is nearer to the true image on average.
            noise: Whether draws get the pixels' noise.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Images of the same shape, or ``(num_samples, *S, C, H, W)``; known pixels as they were.

        Raises:
            ValueError: For a mask of another kind or shape, or NaN among known pixels.
                Without a mask, for a bottom layer that sees the image as one patch.
            RuntimeError: Without a mask, before `calibrate`.
        """
        value = check_value_shape(self, as_tensor("value", value, like=self._like))
        if num_samples is not None:
            num_samples = check_positive_int("num_samples", num_samples)
        check_positive("temperature", temperature)
        with torch.no_grad():
            if mask is None:
                grid = self._grid(self._check_images(value))
                evidence = self._image(find_evidence(self._reader, grid, threshold))
                evidence = evidence.reshape(value.shape)
            else:
                evidence = expand_mask(mask, value)
            blank = float(value.new_zeros(()).clamp(*self.pixel_range))
            images = self._check_images(torch.where(evidence, value, blank))
            grids = self._grid(images), self._grid(evidence)
            filled = fill(self.law, *grids, num_samples, temperature, noise)
            filled = self._image(filled).reshape(len(filled), *value.shape)
            completed = torch.where(evidence, value, filled)
        return completed.squeeze(0) if num_samples is None else completed

    @takes_generator
    def variants(
        self,
        value: TensorLike,
        similarity: int = 1,
        num_samples: int = 8,
        *,
        generator: Generator | None = None,
        **options: Unpack[SampleArguments],
    ) -> Tensor:
        r"""Draws images like given ones, without a graph (the paper's section II-B6).

        Args:
            value: Images, shape ``(*S, C, H, W)``.
            similarity: Number of layers of mixtures, from the top, whose codes are drawn given
                the image. Those of the layers below are drawn from the top down; with 0, all are.
            num_samples: Number of draws for each image.
            options: Those of `sample`; `noise` is False by default.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensor of shape ``(num_samples, *S, C, H, W)``.

        Raises:
            ValueError: For a similarity that is no number of layers, or options out of range.
        """
        layers = len(self.architecture.blocks)
        num_samples = check_positive_int("num_samples", num_samples)
        if as_int(similarity) not in range(layers + 1):
            raise ValueError(
                f"Expected a similarity from 0 to {layers}, the number of layers of mixtures, got "
                f"{similarity!r}."
            )
        options.setdefault("noise", False)
        checked = SampleOptions(**options)
        value = self._check_images(value)
        with torch.no_grad():
            activities = [
                scores.softmax(-1).flatten(1, 2).repeat(num_samples, 1, 1)
                for scores in reversed(self._reader.scores(self._grid(value)))
            ]
            law = self.law
            top = draw(activities[0] if similarity else law.top_weights(len(activities[0])))
            images = self._draw(law, top, checked, activities[1:similarity])
        return images.reshape(num_samples, *value.shape)
