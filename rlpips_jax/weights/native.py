"""The library's own weight files: safetensors with metadata, hashed so that damage is found."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from rlpips_jax._version import __version__
from rlpips_jax.errors import WeightsCorrupt, WeightsMismatch
from rlpips_jax.files.atomic import replacing
from rlpips_jax.files.regular import open_regular
from rlpips_jax.weights.parameters import Layout, Parameters, digest_tensors, flatten, unflatten
from rlpips_jax.weights.pickle_reader import printable
from rlpips_jax.weights.safetensors_bytes import header_of, tensors_of

SUFFIX = ".safetensors"
FORMAT = "rlpips-jax/1"
SEAL = "metadata_sha256"


def write(path: Path, parameters: Parameters, layout: Layout, /, **metadata: str) -> None:
    """Writes a weight file, atomically; float32 whatever the arrays are. Equal arguments give equal bytes.

    Args:
        path: where to; its folder is made.
        parameters: one group of them or more.
        layout: what they fit.
        **metadata: kept beside the tensors: `metric` (as which the file is loaded by its path), `source`,
            `source_sha256`, `licence`... What `read` gave can be handed on; the entries that describe the file itself
            are replaced.

    Raises:
        WeightsMismatch: the parameters do not fit; a file that could not be read is never written.
        OSError: the file cannot be written.
    """
    tensors = {name: np.asarray(tensor) for name, tensor in flatten(parameters)}
    tensors = dict(flatten(unflatten(tensors, layout, f"what was to be written to {path}")))
    metadata.pop(SEAL, None)
    metadata = {
        **metadata,
        "format": FORMAT,
        "architecture": layout.backbone.name,
        "taps": json.dumps(layout.backbone.tapped),
        "library_version": __version__,
        "parameters_sha256": digest_tensors(tensors),
    }
    content = encoded(tensors, {**metadata, SEAL: _seal(metadata)})
    with replacing(path, durable=True) as file:
        file.write(content)


def encoded(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """A safetensors file. Equal arguments give equal bytes."""
    from safetensors.numpy import save

    content = memoryview(save(tensors, metadata))
    # The library writes metadata in an order that differs from process to process.
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(bytes(content[8 : 8 + length])), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join((len(header).to_bytes(8, "little"), header, content[8 + length :]))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a weight file, verified; only `read` finds damage of its tensors.

    Raises:
        WeightsCorrupt: not a weight file of this library, or damaged.
        OSError: the file cannot be opened.
    """
    return _read(path, tensors_too=False)[1]


def read(path: Path, layout: Layout) -> tuple[Parameters, dict[str, str]]:
    """Parameters (float32 NumPy arrays) and metadata of a weight file.

    Raises:
        WeightsCorrupt: not a weight file of this library, or damaged.
        WeightsMismatch: the file is whole, but of another network.
        OSError: the file cannot be opened.
    """
    tensors, metadata = _read(path, tensors_too=True)
    backbone = layout.backbone
    if metadata.get("architecture") != backbone.name:
        found = printable(metadata.get("architecture", "not stated"))
        raise WeightsMismatch(f"{path} holds weights for the network {found}, not '{backbone.name}'")
    parameters = unflatten(tensors, layout, str(path))
    at_taps = " and ".join(group for group in parameters if group != "backbone")
    if at_taps and metadata.get("taps") != json.dumps(backbone.tapped):
        raise WeightsMismatch(
            f"{path} holds {at_taps} for the layers {metadata.get('taps')} of '{backbone.name}', not for "
            f"{json.dumps(backbone.tapped)}"
        )
    return parameters, metadata


def _read(path: Path, *, tensors_too: bool) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Content of a weight file whose hashes are right: those of the bytes that were parsed."""
    with open_regular(path) as file:
        begun = file.read(8)
        # A length beyond the end of the file is not believed.
        length = min(int.from_bytes(begun, "little"), os.fstat(file.fileno()).st_size)
        content = begun + file.read(-1 if tensors_too else length)
    try:
        metadata = header_of(content).metadata
        tensors = tensors_of(content) if tensors_too else {}
    except WeightsCorrupt as error:
        raise WeightsCorrupt(f"{path} {str(error).removeprefix('it ')}; delete it and get it again") from error
    if metadata.get("format") != FORMAT:
        raise WeightsCorrupt(
            f"{path} is not a weight file of this library, or damaged: its format is "
            f"{printable(metadata.get('format', 'not stated'))}, not {FORMAT!r}; 'python -m convert' makes "
            "such a file from a PyTorch checkpoint"
        )
    seal = metadata.pop(SEAL, None)
    intact = seal == _seal(metadata)
    if intact and tensors_too:
        intact = metadata.get("parameters_sha256") == digest_tensors(tensors)
    if not intact:
        raise WeightsCorrupt(f"{path} is damaged: its content does not match its sha256; delete it and get it again")
    return tensors, metadata


def _seal(metadata: dict[str, str]) -> str:
    """sha256 of the metadata, which contain the sha256 of the tensors."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
