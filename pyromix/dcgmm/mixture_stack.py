"""A stack of mixture layers: all parameters of a deep convolutional mixture."""

__all__ = ["MixtureStack"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.advice import warn_user
from ..core.checks import is_traced
from ..core.conversions import TensorLike, as_value
from ..core.law_module import LawModule
from .architecture import Architecture
from .law import TopDownLaw
from .layer_reader import Calibration, LayerReader
from .mixture_layer import MixtureLayer
from .sampling import SampleOptions, draw_images

# Pixels beyond the range of the training data by this share of it are worth a warning.
MARGIN = 0.5


class MixtureStack(LawModule[TopDownLaw]):
    """Layers of mixtures, with all parameters of a deep convolutional mixture.

    `ImageQueries`, `LayerTraining` and `ClassLaw` are written in terms of this class. `DCGMM`, the
    model, says which law the parameters stand for.

    Args:
        architecture: Shapes of the layers.
        shared_noise: Whether all pixels share one scale, instead of the components' own.
        max_precision: Largest precision of all mixtures.
        validate_args: Whether to check the values that are scored.
    """

    pixel_range: Tensor

    def __init__(
        self,
        architecture: Architecture,
        shared_noise: bool,
        max_precision: float,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(event_shape=architecture.event_shape, validate_args=validate_args)
        self.architecture = architecture
        blocks, num_classes = architecture.blocks, architecture.num_classes
        self.mixtures = nn.ModuleList(
            [MixtureLayer(b.dim, b.num_components, max_precision) for b in blocks]
        )
        self.log_noise = nn.Parameter(torch.zeros(())) if shared_noise else None
        self.classifier: nn.Linear | None = None
        if num_classes is not None:
            self.classifier = nn.Linear(blocks[-1].num_components, num_classes)
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)
        sizes = [block.size for block in blocks]
        self.calibration = Calibration(sizes)
        self.context_calibration = Calibration(sizes[:-1])
        self.register_buffer("pixel_range", torch.tensor([-torch.inf, torch.inf]))

    @property
    def noise_scale(self) -> Tensor | None:
        """Standard deviation of pixels, shape (); None with the components' own."""
        return None if self.log_noise is None else self.log_noise.exp()

    # ---- for the classes written in terms of this one ---------------------------------------

    @property
    def _mixtures(self) -> list[MixtureLayer]:
        return list(self.mixtures)  # type: ignore[arg-type]

    @property
    def _classifier(self) -> nn.Linear:
        if self.classifier is None:
            raise ValueError(
                "This model has no classes: add Classifier(10) as the last layer, say, or pass "
                "num_classes to preset."
            )
        return self.classifier

    @property
    def _reader(self) -> LayerReader:
        return LayerReader(self.law, self._mixtures, self.calibration, self.context_calibration)

    @property
    def _like(self) -> Tensor:
        """A parameter, whose dtype and device images must have."""
        return self._mixtures[0].loc

    def _grid(self, images: Tensor) -> Tensor:
        """Images (*S, C, H, W) as (N, H, W, C)."""
        return images.reshape(-1, *self.event_shape).movedim(1, -1)

    def _image(self, grid: Tensor) -> Tensor:
        """Images (*S, H, W, C) as (*S, C, H, W)."""
        return grid.movedim(-1, -3)

    def _draw(
        self, law: TopDownLaw, top: Tensor, options: SampleOptions, given: Sequence[Tensor] = ()
    ) -> Tensor:
        """Draws images (N, C, H, W) without a graph; see `draw_images`."""
        return self._image(draw_images(law, self._mixtures, top, options, given))

    def _check_images(self, value: TensorLike) -> Tensor:
        """Checks images, and returns them; warns of pixels far outside the training data."""
        value = as_value(self, value, like=self._like)
        if not is_traced() and value.numel():
            low, high = (float(t) for t in self.pixel_range)
            least, most = (float(t) for t in value.detach().aminmax())
            margin = MARGIN * (high - low)
            if least < low - margin or most > high + margin:
                warn_user(
                    f"Pixels range from {least:.3g} to {most:.3g}, those of the training data "
                    f"from {low:.3g} to {high:.3g}. Scale images as for training.",
                )
        return value
