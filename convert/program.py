"""The program `python -m convert`: its arguments, the files it writes, its messages."""

import importlib.util
import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

import rlpips_jax as rl
from rlpips_jax.backbones import Backbone, EmbeddingBackbone, RenamedBackbone
from rlpips_jax.cli.terminal import guard_terminal, visible
from rlpips_jax.distances import embedding
from rlpips_jax.distances.lpips import HEADS, Lpips, heads_part
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.ensemble.ensemble import HEADS as ENSEMBLE_HEADS
from rlpips_jax.errors import RlpipsError, WeightsMismatch
from rlpips_jax.files.regular import read_regular
from rlpips_jax.loading import parts, recipes
from rlpips_jax.weights import native, store
from rlpips_jax.weights.download import sha256_of
from rlpips_jax.weights.parameters import (
    Layout,
    Parameters,
    Subtree,
    flatten,
    from_pytorch,
    needed_by,
    subtrees,
    to_pytorch,
    with_heads,
)
from rlpips_jax.weights.pickle_reader import printable
from rlpips_jax.weights.pytorch import checkpoint_shapes, read_checkpoint, write_checkpoint
from rlpips_jax.weights.registry import BACKBONE_PARTS, Part, Recipe

PROGRAM = "python -m convert"
DIFFERENT, IMPOSSIBLE = 1, 2
"""Exit statuses."""

METRICS = {name: part for name, part in parts().items() if "heads" in part.holds}

IN_PACKAGE = [part.backbone for part in HEADS.values() if part.official and part.official.path.startswith("v0.1/")]
"""The networks that the `lpips` package has heads for."""

# tyro would show "{None}|PATH" and "(default: None)".
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


class ArgumentError(RlpipsError, ValueError):
    """A combination of arguments that makes no sense."""


@dataclass(frozen=True)
class Convert:
    """Turn PyTorch checkpoints into weight files of this library, and back, and compare the distances.

    A backbone and heads:  --weights alexnet-owt-7be5be79.pth --heads alex.pth --out DIR

    A whole metric:  --checkpoint latest_net_.pth --out DIR

    A network whose embeddings are compared:  --architecture clip-vit-b32 --checkpoint pytorch_model.bin --out DIR

    Back to PyTorch:  --to-pytorch rlpips-alex --weights-dir DIR --out rlpips-alex.pth

    Compare only:  --verify --name lpips-alex

    rlpips_jax.load(NAME, weights_dir=DIR) loads what was written to DIR; so does rlpips_jax.load(NAME) where
    $RLPIPS_WEIGHTS_DIR names DIR.
    """

    weights: File = None
    """Backbone as torchvision saves it (.pth): the official file, or one without the classifier."""
    heads: File = None
    """Heads of LPIPS (.pth) or of E-LPIPS (.npy)."""
    checkpoint: File = None
    """A whole LPIPS or R-LPIPS, its heads alone, or a network whose embeddings are compared: by itself, or anywhere
    inside another model's checkpoint."""
    prefix: Annotated[str | None, tyro.conf.arg(metavar="PREFIX", help_behavior_hint="")] = None
    """Where in the file the metric or the network is, such as state_dict.loss.perceptual_loss; needed only where
    several are found."""
    to_pytorch: Annotated[str | None, tyro.conf.arg(metavar="METRIC", help_behavior_hint="")] = None
    """Lpips, by name or by the path of its file, to write as a checkpoint that the lpips package loads."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR|FILE", help_behavior_hint="")] = None
    """Folder for the weight files; with --to-pytorch, the file to write."""
    backbone: Annotated[
        str | None,
        tyro.conf.arg(aliases=("--architecture",), metavar="|".join(BACKBONE_PARTS), help_behavior_hint=""),
    ] = None
    """Network; by default it is known by its tensors, where these tell it."""
    name: Name = None
    """Name of the metric, such as lpips-squeeze@elpips or rlpips-alex; one with another name is loaded by path."""
    version: Annotated[Literal["0.1", "0.0"] | None, tyro.conf.arg(metavar="0.1|0.0", help_behavior_hint="")] = None
    """LPIPS version of the heads, by default 0.1; 0.0 does not scale the channels of the image."""
    weights_dir: Folder = None
    """Folder with the metric that --to-pytorch or --verify is to read."""
    verify: Flag = False
    """Compare distances, layers and gradients with PyTorch; exit status 1 if they differ."""
    images: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...", help_behavior_hint="")] = ()
    """Image files to compare on, beside generated images."""
    overwrite: Flag = False
    """Replace files that exist."""


class Checkpoint(NamedTuple):
    """A PyTorch file, and the part that it holds."""

    path: Path
    tensors: Mapping[str, np.ndarray]
    """By the names that they would have alone."""
    names: Mapping[str, str]
    """These names, by the names in the file."""
    official: Part | None
    """The part whose official file it is."""
    likeness: Part
    """The part whose tensors it resembles most."""


class Product(NamedTuple):
    """A weight file to write, and what it is made from."""

    path: Path
    part: Part
    parameters: Parameters
    metadata: dict[str, str]
    checkpoint: Checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Returns:
        Exit status: 0; 1 where distances differ; 2 where what was asked for is impossible.
    """
    config = tyro.cli(Convert, prog=PROGRAM, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        guard_terminal()
        return run(config)
    except (RlpipsError, OSError) as error:
        print(visible(f"{PROGRAM}: {' '.join(str(error).split())}"), file=sys.stderr)
        return IMPOSSIBLE


def run(config: Convert) -> int:
    """Carries out the arguments and returns the exit status.

    Raises:
        RlpipsError: it is impossible; nothing was written.
        OSError: a file cannot be read or written.
    """
    _check(config)
    sources = [path for path in (config.weights, config.heads, config.checkpoint) if path is not None]
    if config.to_pytorch is not None:
        metric = _export(config)
    elif sources:
        metric = _convert(config)
    else:
        assert config.name is not None
        metric = _load(config.name, config.weights_dir)
    if not config.verify:
        return 0
    if not isinstance(metric, Lpips):
        raise ArgumentError("--verify compares LPIPS with PyTorch, and this metric is of another family; leave it out")
    return _verify(metric, [config.out] if config.to_pytorch and config.out else sources, config)


def _check(config: Convert) -> None:
    """Raises `ArgumentError` for combinations that make no sense."""
    converts = bool(config.weights or config.heads or config.checkpoint)
    exports = config.to_pytorch is not None
    mistakes = (
        (
            config.backbone not in (None, *BACKBONE_PARTS),
            f"--backbone must be one of {', '.join(BACKBONE_PARTS)}, got {config.backbone!r}",
        ),
        (
            not (converts or exports or config.verify),
            "nothing to do; give --weights, --heads, --checkpoint, --to-pytorch or --verify",
        ),
        (converts and exports, "--to-pytorch reads a metric of this library, not a checkpoint; run it alone"),
        (
            config.checkpoint and (config.weights or config.heads),
            "--checkpoint is a whole metric; give that alone, or its halves as --weights and --heads",
        ),
        (config.prefix and not converts, "--prefix is a place in a checkpoint to convert"),
        (
            config.prefix and config.weights and config.heads,
            "--prefix is a place in one file; convert --weights and --heads one after the other",
        ),
        (
            (converts or exports) and config.out is None,
            "--out is missing: a folder for weight files, or with --to-pytorch a file",
        ),
        (
            config.name and config.weights and not config.heads,
            "--name names a metric, and a backbone alone is not one; it is named by its network",
        ),
        (
            exports and (config.name or config.backbone or config.version),
            "--to-pytorch takes these from the metric; leave out --name, --backbone and --version",
        ),
        (
            converts and config.weights_dir,
            "--weights-dir is for --to-pytorch and for --verify alone; other weights are looked for in --out",
        ),
        (
            not (converts or exports) and config.name is None,
            "--verify needs a metric: --name of one, or a checkpoint to convert",
        ),
        (not (converts or exports) and config.out, "--verify writes nothing; leave out --out"),
        (config.images and not config.verify, "--images are compared by --verify; add that"),
        (
            config.verify and importlib.util.find_spec("torch") is None,
            "--verify compares with PyTorch, which is not installed; install torch, or leave out --verify",
        ),
    )
    for mistaken, message in mistakes:
        if mistaken:
            raise ArgumentError(message)


def _convert(config: Convert) -> Metric | None:
    """Writes weight files; returns the metric they make, None where its backbone is not on this machine."""
    assert config.out is not None
    products: list[Product] = []
    embedded = _embedded(config)
    if embedded is not None:
        products.append(_embedding(embedded, config, config.out))
    elif config.weights is not None:
        products.append(_backbone(config.weights, config, config.out))
    if embedded is None and (config.heads is not None or config.checkpoint is not None):
        products.append(_heads(config, config.out))
    networks = {product.part.backbone.name for product in products}
    if len(networks) > 1:
        raise ArgumentError(
            f"{config.weights} and {config.heads} are of different networks: {' and '.join(sorted(networks))}"
        )
    if config.out.exists() and not config.out.is_dir():
        raise ArgumentError(f"--out {config.out} is a file; weight files need a folder")
    for product in products:
        _may_write(product.path, config)
    for product in products:
        native.write(product.path, product.parameters, product.part.layout, **product.metadata)
        _report(product)

    *_, last = products
    backbone = BACKBONE_PARTS.get(last.part.backbone.name)
    whole = any("backbone" in product.parameters for product in products)
    if not (whole or backbone is None or config.verify or store.locate(backbone, config.out)):
        print(f"signature  needs the backbone '{backbone.name}', which is not on this machine yet")
        return None
    if embedded is not None:
        name = last.part.name if last.part in embedded.parts else str(last.path)
    elif last.part in BACKBONE_PARTS.values():
        name = f"baseline-{last.part.name}"
    elif last.part.name in METRICS:
        name = last.part.name
    else:
        name = str(last.path)
    metric = _load(name, config.out)
    print(f"signature  {metric.signature}")
    if name in recipes():
        print(f"load it    rlpips_jax.load({name!r}, weights_dir={str(config.out)!r})")
    elif name not in METRICS:
        print(f"load it    rlpips_jax.load({name!r})")
    return metric


def _backbone(path: Path, config: Convert, out: Path) -> Product:
    """The weight file of a torchvision network."""
    checkpoint = _read(path, config.prefix)
    part = BACKBONE_PARTS.get(config.backbone or checkpoint.likeness.backbone.name)
    if part is None:
        raise ArgumentError(f"{path} resembles {checkpoint.likeness.name}, a whole metric; give it as --checkpoint")
    parameters = _parameters(checkpoint, with_heads(part.backbone))
    if parameters.keys() != {"backbone"}:
        found = "a whole metric; give it as --checkpoint" if len(parameters) > 1 else "heads; give it as --heads"
        raise ArgumentError(f"{path} holds {found}")
    return Product(out / (part.name + native.SUFFIX), part, parameters, _provenance(checkpoint), checkpoint)


def _embedded(config: Convert) -> Recipe | None:
    """The metric of embeddings that --name or --backbone asks for; None for any other."""
    if config.heads is not None:
        return None
    asked = (name for name in (config.name, config.backbone) if name in embedding.RECIPES)
    return next((embedding.RECIPES[name] for name in asked), None)


def _embedding(recipe: Recipe, config: Convert, out: Path) -> Product:
    """The weight file of a network whose embeddings are compared, under its own name or that of --name."""
    path = config.checkpoint or config.weights
    assert path is not None
    if config.backbone not in (None, recipe.backbone.name):
        raise ArgumentError(
            f"{recipe.name} has the network {recipe.backbone.name}, but --architecture is {config.backbone}"
        )
    (part,) = recipe.parts
    _, tensors = _alone(_chosen(path, config.prefix), recipe.backbone)
    official = store.identify(read_regular(path), [part])
    checkpoint = Checkpoint(path, tensors, {name: name for name in tensors}, official, part)
    metadata = {"metric": recipe.name, **_provenance(checkpoint)}
    parameters = _parameters(checkpoint, recipe.layout)
    if config.name and config.name != recipe.name:
        part = replace(part, name=_new_name(config.name))
    return Product(out / (part.name + native.SUFFIX), part, parameters, metadata, checkpoint)


def _new_name(name: str) -> str:
    """A name that a metric of one's own may have.

    Raises:
        ArgumentError: it may not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.@+-]*", name) or name in BACKBONE_PARTS or name in recipes():
        raise ArgumentError(f"--name {name!r} cannot name a metric: it is in use, or unfit for a file's name")
    return name


def _heads(config: Convert, out: Path) -> Product:
    """The weight file of heads, with the backbone if the checkpoint has one."""
    path = config.heads or config.checkpoint
    assert path is not None
    checkpoint = _read(path, config.prefix)
    part, metric = _target(config, checkpoint)
    parameters = _parameters(checkpoint, part.layout)
    if "heads" not in parameters:
        raise ArgumentError(f"{path} holds a backbone without heads; give it as --weights")
    if config.heads and "backbone" in parameters:
        raise ArgumentError(f"{path} holds a whole metric; give it as --checkpoint")
    metadata = {"metric": metric, **_provenance(checkpoint)}
    return Product(out / (part.name + native.SUFFIX), part, parameters, metadata, checkpoint)


def _read(path: Path, prefix: str | None) -> Checkpoint:
    """The metric or network in a file.

    Raises:
        ArgumentError: it is a network whose embeddings are compared, which its file does not determine.
        WeightsMismatch: there is not one, or there are several and `prefix` does not choose.
    """
    shapes = _shapes(path, prefix)
    official = store.identify(read_regular(path), parts().values())
    if official is not None:
        tensors = read_checkpoint(path, keep=needed_by([official.backbone]))
        return Checkpoint(path, tensors, {name: name for name in tensors}, official, official)
    candidates: list[tuple[Part, Subtree]] = []
    layouts = [(part, with_heads(part.backbone)) for part in _in_pytorch().values()]
    every = [(part, layout, found) for part, layout in layouts for found in subtrees(shapes, layout)]
    # Of networks with as many fitting tensors, it is the one with fewest others.
    every.sort(key=lambda one: (-one[2].fitting, len(one[1].pytorch_shapes)))
    for part, _, found in every:
        if not any(found.names.keys() & other.names.keys() for _, other in candidates):
            candidates.append((part, found))
    candidates = [one for one in candidates if one[1].groups] or candidates[:1]
    _refuse_embeddings(path, prefix, candidates)
    if not candidates:
        raise WeightsMismatch(
            f"{path} resembles no network known here ({', '.join(BACKBONE_PARTS)}): none of its {len(shapes)} "
            f"tensors has the name and the shape of a tensor of theirs; it has {_outline(shapes)}"
        )
    (likeness, found), *others = candidates
    tensors = _tensors(path, found.names)
    if any(part != likeness or not _equal(tensors, _tensors(path, other.names)) for part, other in others):
        listed = "; ".join(
            f"{found.prefix or '(no prefix)'} {' and '.join(found.groups)} of {part.backbone.name}"
            for part, found in candidates
        )
        raise WeightsMismatch(f"{path} holds several metrics or networks, of which --prefix chooses: {listed}")
    return Checkpoint(path, tensors, found.names, None, likeness)


def _shapes(path: Path, prefix: str | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors whose names begin with a prefix, by their names in the file."""
    shapes = checkpoint_shapes(path)
    begin = f"{prefix.rstrip('.')}." if prefix else ""
    chosen = {name: shape for name, shape in shapes.items() if name.startswith(begin)}
    if prefix and not chosen:
        raise WeightsMismatch(f"{path} has no tensor under --prefix {prefix}; it has {_outline(shapes)}")
    return chosen


def _tensors(path: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Tensors by other names, which are given by their names in the file."""
    return {names[name]: tensor for name, tensor in read_checkpoint(path, keep=names.__contains__).items()}


def _equal(tensors: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> bool:
    return tensors.keys() == others.keys() and all(np.array_equal(tensors[name], others[name]) for name in tensors)


def _refuse_embeddings(path: Path, prefix: str | None, candidates: Sequence[tuple[Part, Subtree]]) -> None:
    """Raises an ArgumentError if a network whose embeddings are compared fits better than the candidates."""
    fitting = 0
    if candidates:
        (part, found), *_ = candidates
        if found.groups and not isinstance(part.backbone, EmbeddingBackbone):
            return
        fitting = found.fitting - isinstance(part.backbone, EmbeddingBackbone)
    tensors = _chosen(path, prefix)
    networks = [part for part in _in_pytorch().values() if isinstance(part.backbone, EmbeddingBackbone)]
    likeness = {part.name: (_alone(tensors, part.backbone)[0], -len(part.backbone.pytorch_shapes)) for part in networks}
    best = max(likeness.values(), default=(0, 0))
    if best[0] > fitting:
        alike = [name for name, one in likeness.items() if one == best]
        raise ArgumentError(
            f"{path} resembles the network {' or '.join(alike)}: give --architecture and --checkpoint. Files do not "
            "say which activation a network has, so it is not guessed (docs/embeddings.md)"
        )


def _chosen(path: Path, prefix: str | None) -> dict[str, np.ndarray]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    begin = f"{prefix.rstrip('.')}." if prefix else ""
    return _tensors(path, {name: name.removeprefix(begin) for name in _shapes(path, prefix)})


def _alone(tensors: Mapping[str, np.ndarray], backbone: Backbone) -> tuple[int, dict[str, np.ndarray]]:
    """How many tensors fit a network that is by itself, or below one component; and its tensors by their names alone.

    For networks that name their tensors in several ways, which `subtrees` does not know.
    """
    expected, best = backbone.pytorch_shapes, (-1, dict(tensors))
    for begin in ("", *dict.fromkeys(f"{name.partition('.')[0]}." for name in tensors)):
        below = {name.removeprefix(begin): tensor for name, tensor in tensors.items() if name.startswith(begin)}
        is_needed = needed_by([backbone])
        below = {name: tensor for name, tensor in below.items() if is_needed(name)}
        found = backbone.renamed(below) if isinstance(backbone, RenamedBackbone) else below
        fitting = sum(expected.get(name) == tensor.shape for name, tensor in found.items())
        if fitting > best[0]:
            best = fitting, below
    return best


def _outline(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The first components of names, with the number of tensors under each."""
    counts = Counter(name.partition(".")[0] for name in shapes)
    listed = ", ".join(f"{printable(name)} ({count})" for name, count in counts.most_common(8))
    return listed + (" and others" if len(counts) > 8 else "") if counts else "no tensors"


def _in_pytorch() -> dict[Backbone, Part]:
    """The networks that a PyTorch file may be of, each with the first part that has it: heads, or the backbone."""
    found: dict[Backbone, Part] = {}
    for part in (*METRICS.values(), *BACKBONE_PARTS.values()):
        if part.official or part.backbone.name in BACKBONE_PARTS:
            found.setdefault(part.backbone, part)
    return found


def _target(config: Convert, checkpoint: Checkpoint) -> tuple[Part, str]:
    """The part that the heads become, and the metric that its file is loaded as when it is loaded by path.

    Raises:
        ArgumentError: name, version, backbone and file contradict each other.
    """
    likeness = checkpoint.likeness
    official = checkpoint.official if "heads" in likeness.holds else None
    network = config.backbone or likeness.backbone.name
    suffix = "@0.0" if config.version == "0.0" else ""
    if likeness.name in ENSEMBLE_HEADS and likeness.backbone.name == network:
        usual = base = likeness.name
    else:
        usual = f"{'lpips' if config.heads else 'rlpips'}-{network}{suffix}"
        bases = (f"lpips-{network}{suffix}", f"baseline-{network}{suffix}")
        base = next((name for name in bases if name in recipes()), likeness.name)
    if official is not None and config.version is None:
        usual = official.name
    name = config.name.removesuffix("@0.1") if config.name else usual
    part = METRICS.get(name)
    if part is None:
        return heads_part(_new_name(name), recipes()[base].backbone, None), base
    version = "0.0" if name.endswith("@0.0") else "0.1"
    if config.backbone not in (None, part.backbone.name):
        raise ArgumentError(f"{name} has the backbone {part.backbone.name}, but --backbone is {config.backbone}")
    if config.version not in (None, version):
        raise ArgumentError(f"{name} has version {version}, but --version is {config.version}")
    if official not in (None, part) and part.official is not None:
        raise ArgumentError(f"{checkpoint.path} is the official file of {official.name}, not of {name}")
    return part, name


def _parameters(checkpoint: Checkpoint, layout: Layout) -> Parameters:
    try:
        return from_pytorch(checkpoint.tensors, layout, str(checkpoint.path))
    except WeightsMismatch as error:
        likeness = checkpoint.likeness.backbone.name
        if likeness == layout.backbone.name:
            raise
        raise WeightsMismatch(f"{error} It resembles '{likeness}'.") from error


def _provenance(checkpoint: Checkpoint) -> dict[str, str]:
    if checkpoint.official is not None and checkpoint.official.official is not None:
        return store.provenance(checkpoint.official.official)
    return {"source": checkpoint.path.name, "source_sha256": sha256_of(checkpoint.path)}


def _report(product: Product) -> None:
    tensors = sum(1 for _ in flatten(product.parameters))
    path, official = product.checkpoint.path, product.checkpoint.official
    kind = f"the official file of {official.name}" if official else "not an official file"
    print(f"wrote      {product.path}: {tensors} tensors ({' and '.join(sorted(product.parameters))})")
    print(f"from       {path}, {kind}, sha256 {product.metadata['source_sha256']}")


def _export(config: Convert) -> Lpips:
    """Writes a metric as a checkpoint of the `lpips` package."""
    assert config.to_pytorch is not None
    assert config.out is not None
    metric = None if config.to_pytorch in ENSEMBLE_HEADS else _load(config.to_pytorch, config.weights_dir)
    if not isinstance(metric, Lpips) or metric.backbone not in IN_PACKAGE:
        raise ArgumentError(
            f"the lpips package cannot compute {config.to_pytorch}: it has LPIPS over "
            f"{', '.join(backbone.name for backbone in IN_PACKAGE)} with LPIPS's pooling and layers"
        )
    if config.out.is_dir():
        raise ArgumentError(f"--out {config.out} is a folder; --to-pytorch writes a file")
    _may_write(config.out, config)
    tensors = to_pytorch(jax.device_get(metric.parameters), metric.backbone)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(config.out, tensors)
    print(f"wrote      {config.out}: {len(tensors)} tensors, sha256 {sha256_of(config.out)}")
    print(f"signature  {metric.signature}")
    arguments = f"net={metric.backbone.name!r}, version={metric.version!r}, model_path={str(config.out)!r}"
    print(f"load it    lpips.LPIPS({arguments}, pnet_rand=True)")
    return metric


def _may_write(path: Path, config: Convert) -> None:
    if path.exists() and not config.overwrite:
        raise ArgumentError(f"{path} exists; --overwrite replaces it")


def _load(name: str, weights_dir: Path | None) -> Any:
    """A metric; for an ensemble, the metric that it applies to its transformed images."""
    part = ENSEMBLE_HEADS.get(name)
    if part is None:
        return rl.load(name, weights_dir=weights_dir)
    backbone = BACKBONE_PARTS[part.backbone.name]
    parameters = store.obtain(part, weights_dir)[0] | store.obtain(backbone, weights_dir)[0]
    return Lpips(parameters, name, part.backbone)


def _verify(metric: Lpips, sources: Sequence[Path], config: Convert) -> int:
    """Compares a metric with PyTorch, which reads the files that the metric came from; prints a table."""
    from convert import reference, verification

    try:
        network = reference.variant(_in_pytorch()[metric.backbone].name)
    except LookupError as error:
        raise ArgumentError(f"PyTorch has no network '{metric.backbone.name}' to compare {metric.name} with") from error
    weights = to_pytorch(jax.device_get(metric.parameters), metric.backbone)
    # Tensors that were not converted now are taken from the metric itself.
    tensors = reference.rename({name: reference.torch.tensor(array) for name, array in weights.items()})
    for path in sources:
        tensors |= reference.read(path, _read(path, config.prefix).names)
    expected = reference.Reference(network, tensors, scaled=metric.version != "0.0")
    package = None
    if metric.backbone in IN_PACKAGE:
        try:
            # An old package with a new torchvision gives many warnings.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                package = reference.Package(metric.backbone.name, metric.version, tensors)
        except Exception as error:
            print(f"without the lpips package ({' '.join(str(error).split())})")
    pairs = [*verification.generated(), *verification.photographs(config.images)]
    rows = verification.compare(metric, expected, package, pairs)
    torch = f"PyTorch {reference.torch.__version__} in float64"
    print(f"largest relative differences from {torch}, {len(pairs)} pairs of images:")
    print(verification.table(rows))
    limits = f"{verification.LIMIT:g} (a gradient in float32, by {verification.ROUNDED_GRADIENT:g})"
    if verification.passes(rows):
        print(f"verified   none differs by more than {limits}")
        return 0
    print(f"{PROGRAM}: {metric.name} differs from PyTorch by more than {limits}", file=sys.stderr)
    return DIFFERENT
