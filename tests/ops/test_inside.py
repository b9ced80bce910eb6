"""Images of several sizes in one batch."""

import jax.numpy as jnp
import numpy as np

from rlpips_jax.ops.inside import inside


def test_inside_keeps_the_top_left_part_of_each_image() -> None:
    x = jnp.ones((2, 3, 4, 1))
    found = inside(x, jnp.array([[2, 1], [3, 4]]))[..., 0]
    np.testing.assert_array_equal(found[0], [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(found[1], x[1, :, :, 0])
