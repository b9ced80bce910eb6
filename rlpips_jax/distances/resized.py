"""A metric of images that are first brought to one size: small images, as those of CIFAR-10, under large networks."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from rlpips_jax.distances.protocol import EmbeddedMetric, Features
from rlpips_jax.distances.registration import register_metric
from rlpips_jax.errors import MetricError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range, to_unit


@dataclass(frozen=True, eq=False)
class Resized:
    """A metric of images resized bilinearly, antialiased where they shrink.

    Attributes:
        metric: the metric of the resized images.
        height: of the resized images, in pixels.
        width: of the resized images, in pixels.

    Raises:
        MetricError: the metric needs larger images.
    """

    metric: Any
    height: int
    width: int

    def __post_init__(self) -> None:
        # While JAX puts a pytree together, its leaves may be anything.
        smallest = getattr(self.metric, "minimum_size", 0)
        if isinstance(smallest, int) and min(self.height, self.width) < smallest:
            raise MetricError(
                f"{self.metric.name} needs images of {smallest}x{smallest} or more, and cannot resize them to "
                f"{self.height}x{self.width}"
            )

    @property
    def name(self) -> str:
        """The metric's name and the size."""
        return f"{self.metric.name} at {self.height}x{self.width}"

    @property
    def signature(self) -> str:
        """The metric's signature and the size."""
        return f"{self.metric.signature} images={self.height}x{self.width}"

    @property
    def minimum_size(self) -> int:
        """Images of any size are resized."""
        return 1

    def features(self, images: Images, *, value_range: ValueRange = UNIT_RANGE) -> Features:
        """The metric's features of the resized images; arguments as there."""
        value_range = check_value_range(value_range)
        (images,) = check_images(value_range, images=images)
        unit = to_unit(images, value_range)
        shape = (*unit.shape[:-3], self.height, self.width, 3)
        resized = jax.image.resize(unit, shape, "bilinear", precision=jax.lax.Precision.HIGHEST)
        return self.metric.features(resized)

    def between(self, features: Features, others: Features) -> Float[Array, "..."]:
        """The metric's distance of the resized images."""
        return self.metric.between(features, others)

    def embedded(self, features: Features) -> Features:
        """The metric's `embedded`, if it has that.

        Raises:
            MetricError: it has not.
        """
        if not isinstance(self.metric, EmbeddedMetric):
            raise MetricError(f"{self.metric.name} is not a squared Euclidean distance: it has no embedded()")
        return self.metric.embedded(features)


register_metric(Resized, ("metric",))
