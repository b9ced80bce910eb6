"""A compact residual network that classifies small images, and its file.

The first convolution is 6x6 with a stride of 2, so that the stages work on a quarter of the pixels. Each stage but the
first begins with a max pooling by 2. A stage has blocks of two 3x3 convolutions, each after a group normalisation and a
ReLU (He et al. 2016). There is no batch normalisation: what the network says of an image depends on that image alone,
also while it is trained and attacked.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlpips_jax.errors import TrainingError
from rlpips_jax.files.atomic import replacing
from rlpips_jax.files.json_object import json_object, json_value
from rlpips_jax.files.regular import open_regular
from rlpips_jax.ops.convolution import convolution
from rlpips_jax.ops.pooling import Pooling, pool
from rlpips_jax.weights.native import encoded

FORMAT = "rlpips-jax classifier/2"
GROUP = 8
"""Channels of a group of the normalisation."""


class ResidualNetwork(nn.Module):
    """The network.

    Attributes:
        classes: number of logits.
        widths: channels of each stage.
        blocks: of each stage.
    """

    classes: int
    widths: tuple[int, ...] = (48, 96, 192)
    blocks: int = 1

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n classes"]:
        """Logits of images in [0, 1]."""

        def conv(width: int, side: int = 3, **options: Any) -> nn.Conv:
            padding = (((side - 1) // 2,) * 2,) * 2
            plain = {"use_bias": False, "padding": padding, "conv_general_dilated": convolution}
            return nn.Conv(width, (side, side), **plain, **options)

        x = conv(self.widths[0], side=6, strides=2)((images - 0.5) / 0.25)
        for stage, width in enumerate(self.widths):
            if stage:
                x = pool(x, Pooling("max", 2, 2))
            for _ in range(self.blocks):
                inner = nn.relu(nn.GroupNorm(num_groups=None, group_size=GROUP)(x))
                short = x if x.shape[-1] == width else conv(width, side=1)(inner)
                inner = nn.relu(nn.GroupNorm(num_groups=None, group_size=GROUP)(conv(width)(inner)))
                # Zero at first: each block begins as its shortcut.
                x = short + conv(width, kernel_init=nn.initializers.zeros)(inner)
        x = nn.relu(nn.GroupNorm(num_groups=None, group_size=GROUP)(x))
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network: a callable pytree, as `rlpips_jax.attacks.classification` takes it.

    Attributes:
        parameters: the network's variables.
        network: the network.
        classes: names of the classes, in the order of the logits.
    """

    parameters: Any
    network: ResidualNetwork = dataclasses.field(metadata={"static": True})
    classes: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n classes"]:
        """Logits of images in [0, 1]."""
        logits: Any = self.network.apply({"params": self.parameters}, images)
        return logits


def save(path: Path, classifier: Classifier, card: Mapping[str, Any]) -> None:
    """Writes a classifier, its network's options and a model card to a `.safetensors` file, atomically."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(classifier.parameters))
    tensors = {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
    network = {name: getattr(classifier.network, name) for name in ("classes", "widths", "blocks")}
    metadata = {
        "format": FORMAT,
        "network": json.dumps(network, sort_keys=True),
        "classes": json.dumps(classifier.classes),
        "card": json.dumps(dict(card), sort_keys=True),
    }
    with replacing(path, durable=True) as file:
        file.write(encoded(tensors, metadata))


def load(path: str | os.PathLike[str]) -> Classifier:
    """Reads a classifier that `save` wrote; half precision becomes float32.

    Raises:
        TrainingError: the file is missing, damaged or of something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()  # The library would wait for a pipe.
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
        options = json_object(metadata["network"])
        network = ResidualNetwork(options["classes"], tuple(options["widths"]), options["blocks"])
        classes = tuple(json_value(metadata["classes"]))
        tree: dict[str, Any] = {}
        for name, tensor in tensors.items():
            *folders, leaf = name.split(".")
            inner = functools.reduce(lambda found, step: found.setdefault(step, {}), folders, tree)
            inner[leaf] = jnp.asarray(tensor, jnp.float32)
        expected = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        if jax.tree.map(jnp.shape, tree) != jax.tree.map(jnp.shape, expected):
            raise ValueError("its tensors do not fit its network")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainingError(f"{os.fspath(path)} cannot be read as a classifier: {error}") from error
    return Classifier(tree, network, classes)
