"""Computes `lpips.json`, the numbers that `test_goldens.py` expects, by PyTorch in float64.

    python -m tests.goldens.make

in the root of a checkout, where `torch` is installed. Weights and images are drawn, so nothing is downloaded and
anyone can repeat it. The networks are those of `convert/reference.py`, which is written from the definition and
agrees with the published weights and distances.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).with_name("lpips.json")

SIZES = {"alex": (39, 48), "vgg": (32, 36), "squeeze": (40, 33)}
"""Small, and such that pooling windows hang over the edge."""

METRICS = (
    "lpips-alex",
    "lpips-vgg",
    "lpips-squeeze",
    "lpips-squeeze@elpips",
    "elpips-vgg",
    "elpips-squeeze",
)
IN_FULL = METRICS[:3]
"""Those of which the other version, the unweighted distance and the gradient are kept too."""

SLICE = (slice(16, 18), slice(12, 15))
"""Rows and columns of the gradient that are kept."""


def draw(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights of a checkpoint, in the order of its tensors.

    With r = RandomState(0), o outputs, i inputs and a window of h x w, a convolution has the weight
    r.standard_normal((o, i, h, w)) sqrt(2 / (h w i)) and the bias 0.01 r.standard_normal(o); a head is
    |r.standard_normal(c)|. All are rounded to float32.
    """
    random = np.random.RandomState(0)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape)
        if name.startswith("lin"):
            values = np.abs(values)
        else:
            values *= np.sqrt(2 / np.prod(shape[1:])) if len(shape) == 4 else 0.01
        tensors[name] = values.astype(np.float32)
    return tensors


def images(backbone: str) -> tuple[np.ndarray, np.ndarray]:
    """Two pairs of images (2, h, w, 3), uint8: noise with fainter noise added, and unrelated noise."""
    random = np.random.RandomState(1)
    x = random.randint(0, 256, (2, *SIZES[backbone], 3))
    y = random.randint(0, 256, x.shape)
    y[0] = np.clip(x[0] + random.normal(0, 25, x[0].shape), 0, 255)
    return x.astype(np.uint8), y.astype(np.uint8)


def _compute(metric: str) -> dict[str, Any]:
    from convert import reference

    network = reference.variant(metric)
    shapes = {f"features.{name}": tuple(value.shape) for name, value in network.features.state_dict().items()}
    backbone = metric.partition("-")[2].partition("@")[0]
    x, y = (batch / 127.5 - 1 for batch in images(backbone))
    with reference.torch.no_grad():
        probe = reference.Reference(network, _as_torch(draw(shapes)), scaled=True, unweighted=True)
        channels = [f.shape[1] for f in probe.activations(reference.to_torch(x[0]))]
    tensors = draw(shapes | {f"lin{index}": (count,) for index, count in enumerate(channels)})

    golden: dict[str, Any] = {}
    for version in ("0.1", "0.0") if metric in IN_FULL else ("0.1",):
        for unweighted in (False, True) if metric in IN_FULL else (False,):
            lpips = reference.Reference(network, _as_torch(tensors), scaled=version == "0.1", unweighted=unweighted)
            layers, gradients = zip(*(lpips.compare(*pair) for pair in zip(x, y, strict=True)), strict=True)
            golden[f"{version} unweighted" if unweighted else version] = {
                "distance": [float(parts.sum()) for parts in layers],
                "layers": [parts.tolist() for parts in layers],
            }
            if metric in IN_FULL and version == "0.1" and not unweighted:
                golden["gradient"] = {
                    "largest": float(np.abs(gradients[0]).max()),
                    "sum": float(gradients[0].sum()),
                    "norm": float(np.linalg.norm(gradients[0])),
                    "slice": gradients[0][SLICE].tolist(),
                }
    return golden


def _as_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    from convert import reference

    return {name: reference.torch.from_numpy(array) for name, array in tensors.items()}


if __name__ == "__main__":
    lines = [f"{json.dumps(metric)}: {json.dumps(_compute(metric))}" for metric in METRICS]
    GOLDENS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {GOLDENS}: {GOLDENS.stat().st_size} bytes")
