"""Functions of arrays that may be sharded over explicit axes of a mesh, which is what `jax.make_mesh` makes by default.

Under explicit axes the sharding of every intermediate array is a part of its type, and many operations (a slice, a
reshape or a gather along a sharded axis, the gradient of a convolution by its kernel) are errors. Under automatic axes
the compiler chooses the shardings, and every operation works.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.sharding import PartitionSpec

Function = TypeVar("Function", bound=Callable[..., Any])


def automatic_axes(*like: str) -> Callable[[Function], Function]:
    """Makes a function run under automatic axes of the mesh, whatever axes its arguments are sharded over.

    Where no argument lies on explicit axes (one device, automatic axes, inside `jax.shard_map`) the function is called
    as it is. It must close over no array that lies on explicit axes.

    Args:
        like: names of arguments, whose first arrays have as many axes, whose sharding the results take over: along
            each first axis whose length a result shares with them. All else is replicated.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            leaves, structure = jax.tree.flatten((args, options))
            places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
            arrays = [leaves[place] for place in places]
            mesh = _explicit_mesh(arrays)
            if mesh is None:
                return function(*args, **options)

            def of_arrays(*arrays: Any) -> Any:
                filled = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
                args, options = jax.tree.unflatten(structure, filled.values())
                return function(*args, **options)

            given = signature.bind(*args, **options).arguments
            return _automatic(of_arrays, arrays, mesh, [jax.tree.leaves(given[name])[0] for name in like])

        return cast(Function, call)

    return decorate


def _explicit_mesh(arrays: list[Any]) -> Any:
    """The mesh with explicit axes that some of the arrays lie on, or None."""
    meshes = (_sharding(array).mesh for array in arrays)
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


def _automatic(function: Callable[..., Any], arrays: list[Any], mesh: Any, like: list[Any]) -> Any:
    within = jax.sharding.get_abstract_mesh()
    if within.axis_names and not within.explicit_axes:
        # Called under automatic axes, with arrays from outside.
        return function(*jax.sharding.reshard(arrays, PartitionSpec()))
    most = max((np.ndim(array) for array in like), default=0)
    like = [array for array in like if np.ndim(array) == most]  # One image that is compared with many has fewer axes.
    names = [next((name for name in axis if name), None) for axis in zip(*map(_names, like), strict=True)]

    def sharding(result: Any) -> PartitionSpec:
        lengths = list(zip(result.shape, like[0].shape if like else (), strict=False))
        shared = next((axis for axis, (length, other) in enumerate(lengths) if length != other), len(lengths))
        return PartitionSpec(*names[:shared])

    structures = []

    def leaves(*arrays: Any) -> list[Any]:
        # A class of results may refuse anything but arrays as its fields, so only its leaves leave the function.
        found, structure = jax.tree.flatten(function(*arrays))
        structures.append(structure)
        return found

    automatic = functools.partial(jax.sharding.auto_axes, leaves, axes=mesh.explicit_axes)
    with jax.sharding.use_abstract_mesh(mesh):
        shapes = jax.eval_shape(automatic(out_sharding=PartitionSpec()), *arrays)
        results = automatic(out_sharding=[sharding(shape) for shape in shapes])(*arrays)
    return jax.tree.unflatten(structures[-1], cast(list[Any], results))


def _sharding(array: Any) -> Any:
    return cast(Any, jax.typeof(array)).sharding


def _names(array: Any) -> tuple[Any, ...]:
    """The mesh's axes along each axis of the array, None where it is not sharded."""
    spec = tuple(_sharding(array).spec)
    return spec + (None,) * (len(array.shape) - len(spec))
