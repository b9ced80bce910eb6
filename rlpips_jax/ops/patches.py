"""Cutting images into square patches."""

from jaxtyping import Array, Float


def patches(x: Float[Array, "n h w c"], side: int) -> Float[Array, "n i j _"]:
    """The values of each patch, in the order of a kernel (h, w, c): `(n, h // side, w // side, side * side * c)`.

    Their products with a kernel are a convolution whose stride is its window. Rows and columns that fill no patch at
    the bottom and right are left out.
    """
    n, height, width, channels = x.shape
    rows, columns = height // side, width // side
    cut = x[:, : rows * side, : columns * side].reshape(n, rows, side, columns, side, channels)
    return cut.swapaxes(2, 3).reshape(n, rows, columns, -1)
