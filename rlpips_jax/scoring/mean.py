"""A mean that is kept while distances come, batch by batch: for evaluation within a training loop."""

from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rlpips_jax.arguments import whole_number
from rlpips_jax.errors import MetricError

Batch = TypeVar("Batch")

NONE_YET = np.int32(0)
ZERO = np.float32(0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a `Mean` comes to.

    Attributes:
        mean: of all values; NaN if there is none.
        standard_error: of the mean, s / sqrt(n), where s is the sample's standard deviation; NaN below two values.
        count: of values.
    """

    mean: Float[Array, ""]
    standard_error: Float[Array, ""]
    count: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of values that come in batches; a pytree of three numbers, of no values to begin with.

        >>> import jax.numpy as jnp
        >>> import rlpips_jax as rl
        >>> mean = rl.scoring.Mean()
        >>> for distances in (jnp.array([0.1, 0.3]), jnp.array([0.2])):
        ...     mean = mean.update(distances)
        >>> result = mean.compute()
        >>> f"{result.mean:.3f} +- {result.standard_error:.3f} of {result.count}"
        '0.200 +- 0.058 of 3'

    Every method works under `jit`, `jax.pmap` and `jax.shard_map`. Where images are sharded over a mesh, `update` under
    `jit` is all there is to do; inside `pmap` and `shard_map` each device keeps a mean of its own, which `across`
    brings together. With n, m and M2 the count, the mean and the sum of squared deviations,

        n = n_a + n_b,    m = m_a + (m_b - m_a) n_b / n,    M2 = M2_a + M2_b + (m_b - m_a)^2 n_a n_b / n

    (Chan, Golub, LeVeque 1983): squares of large values are never subtracted from each other.

    Attributes:
        count: n, int32.
        mean: m, float32.
        squares: M2, float32.
    """

    count: Int[Array | np.int32, "*axes"] = NONE_YET
    mean: Float[Array | np.float32, "*axes"] = ZERO
    squares: Float[Array | np.float32, "*axes"] = ZERO

    def update(self, distances: Float[Array, "..."], mask: Bool[Array | np.ndarray, "..."] | None = None) -> "Mean":
        """The mean of these values too.

        Args:
            distances: of any shape; summed up in float32.
            mask: of the same shape, True where a value counts. One that does not may be NaN.
        """
        values = jnp.asarray(distances, jnp.float32)
        counts = jnp.ones_like(values, bool) if mask is None else jnp.asarray(mask)
        if counts.shape != values.shape:
            raise MetricError(f"mask must have the shape of the distances, {values.shape}, got {counts.shape}")
        count = jnp.sum(counts, dtype=jnp.int32)
        mean = jnp.sum(jnp.where(counts, values, 0)) / jnp.maximum(count, 1)
        squares = jnp.sum(jnp.square(jnp.where(counts, values - mean, 0)))
        return self.merge(Mean(count=count, mean=mean, squares=squares))

    def merge(self, other: "Mean") -> "Mean":
        """The mean of the values of both."""
        count = jnp.asarray(self.count + other.count)
        share = other.count / jnp.maximum(count, 1).astype(jnp.float32)
        apart = other.mean - self.mean
        squares = self.squares + other.squares + jnp.square(apart) * self.count * share
        return Mean(count=count, mean=self.mean + apart * share, squares=squares)

    def across(self, axis_name: str | tuple[str, ...]) -> "Mean":
        """The mean of the values of all devices, the same on each: one collective.

        Args:
            axis_name: of `pmap`, or one or more axes of the mesh of `shard_map`.
        """
        # Counts of less than 2^24 are exact in float32.
        mine = jnp.stack([jnp.asarray(self.count, jnp.float32), self.mean, self.squares])
        devices = lax.axis_size(axis_name)
        rows = lax.psum(jnp.zeros((devices, 3)).at[lax.axis_index(axis_name)].set(mine), axis_name)
        count, mean, squares = rows.T
        total = jnp.sum(count)
        of_all = jnp.sum(mean * count) / jnp.maximum(total, 1)
        squares = jnp.sum(squares) + jnp.sum(jnp.square(mean - of_all) * count)
        return Mean(count=total.astype(jnp.int32), mean=of_all, squares=squares)

    def compute(self) -> Summary:
        """Mean, standard error and count."""
        count = jnp.asarray(self.count)
        variance = jnp.where(count > 1, self.squares / jnp.maximum(count - 1, 1), jnp.nan)
        return Summary(
            mean=jnp.where(count > 0, self.mean, jnp.nan),
            standard_error=jnp.sqrt(variance / jnp.maximum(count, 1)),
            count=count,
        )


def filled(batch: Batch, size: int) -> tuple[Batch, Bool[np.ndarray, " size"]]:
    """A batch with its last example repeated up to a size, and which examples are its own.

    A loader's last batch is often smaller than the others, and a jitted step is compiled again for it. Filled up on the
    host, it runs in the program of the others; `Mean.update` leaves out what the mask does.

        >>> import numpy as np
        >>> import rlpips_jax as rl
        >>> images, mask = rl.scoring.filled(np.zeros((2, 16, 16, 3)), 3)
        >>> images.shape, mask
        ((3, 16, 16, 3), array([ True,  True, False]))

    Args:
        batch: a pytree of arrays whose first axes have the same length, from 1 to `size`.
        size: examples afterwards.

    Raises:
        MetricError: lengths differ, or there is no example, or there are too many.
    """
    size = whole_number("size", size, minimum=1, error=MetricError)
    lengths = {len(leaf) for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or not 1 <= max(lengths) <= size:
        raise MetricError(f"arrays of the batch must have one length from 1 to {size}, got {sorted(lengths)}")
    (length,) = lengths

    def fill(leaf: Any) -> np.ndarray:
        return np.pad(leaf, [(0, size - length), *[(0, 0)] * (np.ndim(leaf) - 1)], mode="edge")

    return jax.tree.map(fill, batch), np.arange(size) < length
