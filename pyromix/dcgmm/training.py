"""How a stack of mixture layers is trained: all layers at once, each for itself."""

__all__ = ["LayerTraining"]

from typing import Any, ClassVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ..core.batch import Batch, split_batch
from ..core.checks import check_value
from ..core.conversions import as_labels
from ..numerics.full_precision import in_full_precision
from .law import normal_log_prob
from .mixture_stack import MixtureStack

# Steps of plain SGD relative to those of centroids. Those of precisions are the published ones.
RATES = {"loc": 1.0, "log_precision": 0.5, "logits": 1.0, "log_noise": 1.0}
CLASSIFIER_RATE = 20.0

# Largest range of pixels, squared and times the largest precision, that SGD can start from.
LARGEST_RANGE = 1e4

# Images of a batch whose reconstruction tells the shared noise.
NOISE_IMAGES = 16


class LayerTraining(MixtureStack):
    """Loss, optimizer and schedule of layers of mixtures.

    Attributes:
        max_precision: Largest precision of all mixtures.
        centroid_share: Share of training in which only centroids learn.
    """

    default_lr: ClassVar[float] = 0.05
    max_precision: float
    centroid_share: float
    _metrics: dict[str, float]

    @in_full_precision
    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:
        """Returns what training minimises, a scalar: see `DCGMM`.

        Args:
            batch: Images (N, C, H, W), or with a classifier a pair of images and labels (N,).
            progress: How far training has come, from 0 to 1.

        Raises:
            ValueError: For images or labels that do not fit, labels without a classifier, or a
                classifier without labels.
        """
        value, label = split_batch(batch, like=self._like)
        value = check_value(self, value, like=self._like).reshape(-1, *self.event_shape)
        if label is not None and self.classifier is None:
            raise ValueError(
                "Expected images alone, got a pair of images and labels. Add Classifier(10) as "
                "the last layer, say, or leave labels out."
            )
        grid = self._grid(value)
        if not self.training:
            return self._evaluation_loss(grid, label)
        self._metrics = {}
        losses, activity, codes = self._layer_losses(grid, progress < self.centroid_share)
        if self.log_noise is not None:
            with torch.no_grad():
                mean = self.law.decode(codes)
            fit = normal_log_prob(grid[:NOISE_IMAGES], mean, self.log_noise.exp())
            losses.append(-fit.mean() / self.event_shape.numel())
        if self.classifier is not None:
            losses.append(self._class_loss(activity, label))
        return torch.stack(losses).sum()

    def _layer_losses(
        self, grid: Tensor, centroids_only: bool
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Returns the loss of every layer, from the bottom.

        Args:
            grid: Images, shape (N, H, W, C).
            centroids_only: Whether precisions and weights have gradients of zero.

        Returns:
            The losses, responsibilities of the top layer (N, rows, columns, K), and the codes of
            the bottom layer for the first images, (NOISE_IMAGES, positions).
        """
        activity, losses, codes = grid, [], torch.empty(0)
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
        return losses, activity, codes

    def _evaluation_loss(self, grid: Tensor, label: Any) -> Tensor:
        """Minus the law's mean log-density of images and the codes that `encode` gives them."""
        scores = self._reader.scores(grid)
        codes = [part.argmax(-1).flatten(1) for part in scores]
        loss = -self.law.joint_log_prob(grid, codes).mean()
        if self.classifier is not None:
            loss = loss + self._class_loss(scores[-1].softmax(-1), label)
        return loss

    def _class_loss(self, activity: Tensor, label: Any) -> Tensor:
        """Cross-entropy of the classifier, given responsibilities of the top layer."""
        classifier = self._classifier
        if label is None:
            raise ValueError(
                "Expected pairs of images and integer labels of shape (N,), as there is a "
                "Classifier: fit(model, (images, labels))."
            )
        label = as_labels(label, classifier.out_features, activity.device)
        if label.shape != activity.shape[:1]:
            raise ValueError(
                f"Expected one label for each of {len(activity)} images, got shape "
                f"{tuple(label.shape)}."
            )
        logits = classifier(activity.flatten(1))
        if self.training:
            accuracy = (logits.argmax(-1) == label).double().mean()
            self._metrics["class accuracy"] = accuracy.item()
        return nnf.cross_entropy(logits, label)

    def metrics(self) -> dict[str, float]:
        """Returns what each layer maximised in the last step, and the share of correct classes.

        The former is the mean of the largest of its smoothed scores; late in training, when hardly
        anything is smoothed, it is nearly the log-likelihood.
        """
        return self._metrics

    def make_optimizer(self, lr: float) -> Optimizer:
        """Returns plain SGD, with rates of their own for precisions and the classifier.

        Args:
            lr: Learning rate of centroids.
        """
        groups: dict[float, list[nn.Parameter]] = {1.0: []}  # first: its rate is what is recorded
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = RATES.get(name.rpartition(".")[-1], CLASSIFIER_RATE)
                groups.setdefault(rate, []).append(parameter)
        return SGD([{"params": p, "lr": lr * rate} for rate, p in groups.items()], lr=lr)

    @property
    def scheduled(self) -> bool:
        """True: `anneal` follows a schedule."""
        return True

    def anneal(self, progress: float) -> None:
        """Shrinks neighbourhoods in time, and clips precisions.

        Args:
            progress: How far training has come, from 0 to 1.
        """
        for mixture in self._mixtures:
            mixture.neighbourhood.limit(progress / max(self.centroid_share, 1e-12))
            mixture.clip()

    def stage(self, progress: float) -> str:
        """Returns the name of the stage of training: what learns in it."""
        return "centroids" if progress < self.centroid_share else "centroids and precisions"

    @torch.no_grad()
    def initialize(self, data: Batch) -> None:
        """Keeps the range of the pixels, of which later images are checked.

        Parameters are left alone, as centroids start at random.

        Args:
            data: Images (N, C, H, W), or a pair of them and labels.

        Raises:
            ValueError: For images that do not fit, or whose range is far from one.
        """
        value, _ = split_batch(data, like=self._like)
        value = check_value(self, value, like=self._like)
        low, high = (float(t) for t in value.aminmax())
        if (high - low) ** 2 * self.max_precision > LARGEST_RANGE:
            raise ValueError(
                f"Expected pixels in units of about one, got a range from {low:.3g} to "
                f"{high:.3g}. Divide bytes by 255."
            )
        self.pixel_range.copy_(torch.stack(value.aminmax()))
        super().initialize(data)
