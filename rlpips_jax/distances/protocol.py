"""What a metric must be able to do; everything above this module depends on these protocols alone.

A metric is any object with the members of `Metric`: a user's own class too, without inheriting anything. It should be
a pytree, so that it passes through `jax.jit` as an argument. What only some metrics can do has a protocol of its own,
and is asked for where it is needed:

| protocol | what it adds | who needs it |
|---|---|---|
| `RandomMetric` | `distance`, `expectation`: means over draws; `under`: one key | what takes a key |
| `LayeredMetric` | `layers_between`: the share of each layer | `rlpips_jax.layer_distances` |
| `MappedMetric` | `map_between`: where images differ | `rlpips_jax.distance_map` |
| `MaskedMetric` | `masked_between`: the mean over a part of the positions | the `mask` argument |
| `PairwiseMetric` | `rows`, `rows_between`: all pairs by matrix products | `rlpips_jax.pairwise`, if they are there |
| `TiledMetric` | `locality`, `statistics_between`, `layers_of`: large images in tiles | `max_memory` |
| `PaddedMetric` | `padded_distance`: images of several sizes in one batch | `rlpips_jax.scoring`, if it is there |
| `EmbeddedMetric` | `embedded`: features whose squared Euclidean distance it is | attacks bounded by a metric |
| `DropoutMetric` | `can_drop`, `features_under`: features under masks of dropout | ensembles, if they are there |
| `TransposableMetric` | `transposed`: a network with transposed kernels | ensembles, if it is there |
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from rlpips_jax.arguments import Key
from rlpips_jax.backbones.locality import Locality
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

Features = PyTree[Array]
"""What a metric keeps of each image: a pytree of arrays whose first axes are the leading axes of the images."""

_ABSENT = object()


class _ByMembers(type(Protocol)):
    """Tells by the names of members alone whether an object fits: no property is computed (as Python 3.12 does)."""

    def __instancecheck__(cls, instance: Any) -> bool:
        names = [name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})]
        names += [name for base in cls.__mro__ if base is not object for name in vars(base) if name[0] != "_"]
        return all(inspect.getattr_static(instance, name, _ABSENT) is not _ABSENT for name in names)


@runtime_checkable
class Metric(Protocol, metaclass=_ByMembers):
    """A perceptual distance of images."""

    @property
    def name(self) -> str:
        """What it is called in tables and messages."""
        ...

    @property
    def signature(self) -> str:
        """One line that pins a number: the same signature and the same images give the same distance."""
        ...

    @property
    def minimum_size(self) -> int:
        """The smallest height and width of an image, in pixels."""
        ...

    def features(self, images: Images, *, value_range: ValueRange = UNIT_RANGE) -> Features:
        """What is compared, computed once for each image.

        Args:
            images: `(..., h, w, 3)`, uint8 or floats in `value_range`.
            value_range: black and white of floating-point images.
        """
        ...

    def between(self, features: Features, others: Features) -> Float[Array, "..."]:
        """The distance of images whose features are at hand; leading axes broadcast."""
        ...


@runtime_checkable
class RandomMetric(Protocol, metaclass=_ByMembers):
    """A distance that is an expectation over random draws, and so needs a key: `rlpips_jax.Ensemble`."""

    @property
    def name(self) -> str: ...

    @property
    def signature(self) -> str: ...

    @property
    def minimum_size(self) -> int: ...

    def distance(
        self, x: Images, y: Images, *, value_range: ValueRange, key: Key | None, samples: int | None
    ) -> Float[Array, "..."]:
        """The mean over draws of the distance of each pair; what `rlpips_jax.distance` calls."""
        ...

    def under(self, key: Key, *, samples: int | None = None) -> Metric:
        """The metric of the draws of one key, which are the same for all images: a `Metric`."""
        ...

    def expectation(self, function: Callable[..., Array], arguments: PyTree[Array], *, key: Key, samples: int) -> Array:
        """The mean over draws of a function of images' features.

        Args:
            function: `metric, features_of, arguments -> (n, ...)`, where `metric` is a `Metric` and `features_of` gives
                the features of images `(n, k, h, w, 3)` in [0, 1] under the draw at hand. Nothing traced is closed
                over, and what comes out for an example depends on that example alone.
            arguments: a pytree of images `(n, k, h, w, 3)` in [0, 1].
            key: a key of `jax.random`.
            samples: draws.
        """
        ...


@runtime_checkable
class LayeredMetric(Protocol, metaclass=_ByMembers):
    """A metric that is a sum over layers."""

    def layers_between(self, features: Features, others: Features) -> Float[Array, "... layers"]:
        """The share of each layer in `between`: `(..., layers)`, summing to it."""
        ...


@runtime_checkable
class MappedMetric(Protocol, metaclass=_ByMembers):
    """A metric that tells where images differ."""

    def map_between(self, features: Features, others: Features, *, height: int, width: int) -> Float[Array, "... h w"]:
        """The distance at each pixel of images of this size."""
        ...


@runtime_checkable
class MaskedMetric(Protocol, metaclass=_ByMembers):
    """A metric that can leave parts of the images out."""

    def masked_between(
        self, features: Features, others: Features, mask: Bool[Array, "... h w"]
    ) -> Float[Array, "... layers"]:
        """The share of each layer, with every mean weighted by the mask averaged down to the layer's size."""
        ...


@runtime_checkable
class PairwiseMetric(Protocol, metaclass=_ByMembers):
    """A metric whose matrix of distances costs less than its entries one by one."""

    def pairwise_between(self, features: Features, others: Features) -> Float[Array, "n m"]:
        """Distances of all images of one set to all of another; exactly 0 only where features are equal."""
        ...

    def rows(self, features: Features, images: Images, value_range: ValueRange) -> Any:
        """The features of a batch, prepared for comparison with many others."""
        ...

    def rows_between(self, rows: Any, others: Features, images: Images, value_range: ValueRange) -> Float[Array, "n m"]:
        """Distances of prepared rows from other features; 0 where the images they were computed from are equal."""
        ...


@runtime_checkable
class EmbeddedMetric(Metric, Protocol, metaclass=_ByMembers):
    """A metric that is a squared Euclidean distance."""

    def embedded(self, features: Features) -> Features:
        """Features so scaled that the square of their Euclidean distance is `between`."""
        ...


@runtime_checkable
class TiledMetric(Metric, Protocol, metaclass=_ByMembers):
    """A metric whose distance follows from statistics of parts of the images; its features are one array per tap."""

    @property
    def max_memory(self) -> int | None:
        """Bytes that activations may take, roughly; None for no limit. A field that `dataclasses.replace` changes."""
        ...

    @property
    def locality(self) -> Locality | None:
        """On which part of the image each array of features depends; None where that has no bound."""
        ...

    def statistics_between(
        self, features: Features, others: Features, cores: Sequence[Float[Array, "#n i j"]]
    ) -> PyTree[Array]:
        """What a part of the images contributes to the distance: arrays with the leading axis n.

        Args:
            features: of n parts `(n, h, w, 3)`.
            others: of the other images' parts.
            cores: per tap, 1 at the positions that count and 0 elsewhere.
        """
        ...

    def layers_of(self, statistics: PyTree[Array]) -> Float[Array, " layers"]:
        """The share of each layer in a pair's distance, from the statistics of all parts along the first axis."""
        ...


@runtime_checkable
class PaddedMetric(Protocol, metaclass=_ByMembers):
    """A metric that may compare pairs of several sizes in one batch."""

    @property
    def can_pad(self) -> bool:
        """Whether its network allows that."""
        ...

    def padded_distance(
        self, x: Images, y: Images, sizes: Int[Array | np.ndarray, "n 2"], *, value_range: ValueRange = UNIT_RANGE
    ) -> Float[Array, " n"]:
        """The distance of each pair, whose images lie in the top left corner and have their own height and width."""
        ...


@runtime_checkable
class DropoutMetric(Protocol, metaclass=_ByMembers):
    """A metric whose network may be computed under masks of dropout."""

    @property
    def can_drop(self) -> bool:
        """Whether its network allows that."""
        ...

    def features_under(self, images: Images, dropout: Any, *, value_range: ValueRange = UNIT_RANGE) -> Features:
        """Features under `rlpips_jax.backbones.Dropout` masks."""
        ...


@runtime_checkable
class TransposableMetric(Protocol, metaclass=_ByMembers):
    """A metric that can be changed into one whose distances are those of the transposed images."""

    def transposed(self, where: Bool[Array, ""]) -> Metric:
        """The changed metric where the flag is True, else the metric itself."""
        ...


def is_random(metric: object) -> TypeGuard[RandomMetric]:
    """Whether a distance by this metric needs a key."""
    return isinstance(metric, RandomMetric)
