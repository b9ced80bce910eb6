"""The configuration of a training run: frozen dataclasses, which `python -m training` turns into options.

Radii are in units of [-1, 1], as R-LPIPS states them: 8/255 there is 4/255 of the whole range of values.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from rlpips_jax.attacks.arguments import read_radius
from rlpips_jax.attacks.balls import BALLS
from rlpips_jax.attacks.objectives import ATTACKED
from rlpips_jax.attacks.table import ATTACKS, names
from rlpips_jax.errors import TrainingError

NO_ATTACK = "none"


def choice(*values: str) -> Any:
    """Makes an option of text offer these values, and refuse others."""
    return tyro.conf.arg(constructor_factory=lambda: tyro.extras.literal_type_from_choices(values))


AttackName = Annotated[str, choice(*names("objective"), NO_ATTACK)]
AttackedName = Annotated[str, choice(*ATTACKED)]
NormName = Annotated[str, choice(*BALLS)]

NOT_DECISIVE = (
    *("out", "weights_dir", "data_dir", "manual_dir", "workers", "prefetch", "checkpoint_every", "keep"),
    *("distributed", "coordinator", "processes", "process"),
)
"""Options that change places and speed, but not the result."""

PLACES = ("data", "votes", "validation", "photographs", "metric", "start")
"""Options that may be the path of a file or a folder."""

COUNTS = (
    *("batch", "accumulate", "triplets", "validation_triplets", "size", "checkpoint_every", "keep"),
    *("attack_steps", "evaluation_steps", "steps", "evaluate_every", "samples", "metric_size"),
)
"""Options that must be 1 or more."""
NOT_NEGATIVE = ("seed", "workers", "prefetch", "epochs", "decay_epochs", "shift")
RATES = ("rate", "backbone_rate", "floor_rate", "floor", "natural_weight", "noise", "first_layer")


@dataclass(frozen=True)
class Recipe:
    """The options in which the protocols differ; `Training` explains each.

    Attributes:
        initial_heads: "metric", "equal" or "drawn".
        loss: "ratio" or "head".
        epsilon: radius of the attack, as the user wrote it.
        attack_steps: of the attack.
        natural_weight: of the loss without attack.
        dropout: before each head.
        epochs: at the full rate.
        decay_epochs: of the falling rate.
        rate: of heads and ranking head.
        b1: of Adam.
        batch: triplets per step.
        backbone_rate: of the backbone.
    """

    initial_heads: str
    loss: str
    epsilon: str
    attack_steps: int
    natural_weight: float
    dropout: float
    epochs: int
    decay_epochs: int
    rate: float
    b1: float
    batch: int
    backbone_rate: float = 0.0

    @property
    def radius(self) -> float:
        """The radius as a number."""
        return radius(self.epsilon, "--epsilon")


RECIPES = {
    "corrected": Recipe("metric", "ratio", "3/255", 4, 2.0, 0.0, 0, 2, 3e-2, 0.9, 80),
    # Ghazanfari et al. 2023, and Zhang et al. 2018 for what both share.
    "published": Recipe("drawn", "head", "8/255", 50, 0.0, 0.5, 5, 5, 1e-4, 0.5, 50),
}
"""By protocol."""

TUNED: Mapping[str, Mapping[str, Any]] = {
    "corrected": {"natural_weight": 1.5, "rate": 1e-2, "backbone_rate": 3e-3, "batch": 50},
    "published": {"backbone_rate": 1e-4},
}
"""Differences from `RECIPES` where the backbone is trained too, by protocol."""

L2_RADII = {"corrected": "1", "published": "3"}
"""Radii in l2, by protocol."""
FLOW = "0.5"
"""Radius of flows, in pixels."""
EVALUATION_RADII = {"linf": ("2/255", "4/255"), "l2": ("0.5", "1")}
"""Radii of evaluation's attack, by norm."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The options that every run of the loop has."""

    out: Path = Path("runs/run")
    """Folder for checkpoints, logs and the result. An interrupted run resumes from it."""
    weights_dir: Path | None = None
    """Folder to look for weights in first."""
    seed: int = 0
    """Seed of all random draws."""
    evaluate_every: int | None = None
    """Steps between evaluations; by default one epoch."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep beside the best."""
    export: Literal["last", "best"] = "last"
    """Which checkpoint becomes the result: the last, or the one with the best score of its evaluation."""
    workers: int = 0
    """Processes that read data; 0 for threads."""
    prefetch: int = 4
    """Batches to read ahead."""

    distributed: bool = False
    """Train together with the other processes of a TPU pod or a Slurm job, which JAX finds by itself."""
    coordinator: str | None = None
    """host:port of process 0, where JAX cannot find it; with --processes and --process."""
    processes: int | None = None
    """Number of processes that train together."""
    process: int | None = None
    """Number of this process, from 0."""

    @property
    def settings(self) -> dict[str, Any]:
        """All options by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def document(self) -> dict[str, Any]:
        """The options that decide the result of a run, as JSON values."""
        fields = {name: value for name, value in self.settings.items() if name not in NOT_DECISIVE}
        return json.loads(json.dumps({"mode": type(self).__name__.lower(), **fields}, default=str))

    def card(self) -> dict[str, Any]:
        """`document` for a model card: files and folders by name, without their paths."""
        document = self.document()
        return {name: Path(value).name if value and name in PLACES else value for name, value in document.items()}

    def check_counts(self, options: Mapping[str, Any]) -> None:
        """Raises a TrainingError for numbers among these options that are too small."""
        for name, value in options.items():
            least = 1 if name in COUNTS else 0 if name in NOT_NEGATIVE else None
            if least is not None and value is not None and value < least:
                raise TrainingError(f"--{_option(name)} must be {least} or more, got {value}")


@dataclass(frozen=True, kw_only=True)
class Training(Run):
    """The options of runs that train a metric."""

    data: str = "photographs"
    """Judged triplets to learn from: "bapps", "photographs" (triplets made of --photographs), or the path of an .npz
    file or folder of triplets."""
    out: Path = Path("runs/rlpips")
    """Folder for checkpoints, logs and the trained metric. An interrupted run resumes from it."""
    metric: str = "lpips-alex"
    """Metric to start from, by name or path; of natural also an ensemble, such as elpips-squeeze."""
    samples: int | None = None
    """Transformations over which an ensemble averages the distances of a step, by default 1; the same for both
    distances of a triplet."""
    photographs: Path | None = None
    """Folder of photographs to make triplets from: half with one distortion at two strengths (ordinal), half with two
    distortions (crossed), judged by the teacher."""
    validation: Path | None = None
    """Triplets to evaluate on, or photographs to make them from; by default, with --data bapps, its validation splits,
    else none."""
    triplets: int = 8000
    """Triplets of each sort to make from photographs, and the most to take of --votes."""
    validation_triplets: int | None = None
    """The most triplets to use of each validation set; by default all, and of photographs 600 of each sort."""
    teacher: str = "lpips-alex"
    """Metric that judges crossed triplets."""
    data_dir: Path = Path("~/tensorflow_datasets")
    """Folder in which BAPPS is kept; it is downloaded and built there if necessary."""
    manual_dir: Path | None = None
    """Folder with BAPPS's archives, or their contents; nothing is downloaded then."""
    split: tuple[str, ...] = ()
    """Splits to train on: of BAPPS, by default train_traditional, train_cnn and train_mix; of a folder of votes, by
    default train."""
    votes: Path | None = None
    """Folder of people's votes to learn from too, resized to --size: at most --triplets of its training split."""
    size: int | None = None
    """Height and width of the images, by default 64; those of an .npz file are taken as they are."""

    protocol: Literal["corrected", "published"] = "corrected"
    """Chooses the defaults of the options that name two. The published recipe also has quirks: its attack ascends the
    loss of a ranking head drawn anew at each step, by steps that reach a corner of the ball, moves p0 whether or not it
    is closer, leaves [-1, 1], and in l2 takes the gradient's sign; tune clips all 1x1 kernels to 0 or more; evaluations
    also count agreement with the majority."""
    initial_heads: Literal["metric", "equal", "drawn"] | None = None
    """Start from the metric's heads, from equal weights of all channels, or (published) from heads drawn at random."""
    first_layer: float = 1.0
    """Factor on the first layer's weights at the start, unless heads are drawn. Attacks leave most weight on it, though
    it says little about anything but distortions; --head-range keeps it low."""
    head_range: float | None = None
    """Keep every weight of the heads within this factor of its start, up and down; by default weights need only be 0 or
    more, and attacks then leave little weight on any but the first layers."""
    loss: Literal["ratio", "head"] | None = None
    """How two distances become a judgment: by their ratio, or (published) by a ranking head, which is learnt too."""
    attack: AttackName = "pgd"
    """Attack of `rlpips_jax.attacks` inside each step."""
    attacked: AttackedName = "closer"
    """Which image the attack moves. In the published protocol these mean p0, p1, both (p0, then p1 against the moved
    p0), and the reference."""
    norm: NormName = "linf"
    """Norm of the ball."""
    epsilon: str | None = None
    """Its radius in units of [-1, 1], by default 3/255, in l2 1; published 8/255, in l2 3. For spatial, 0.5 pixels."""
    attack_steps: int | None = None
    """Steps of the attack, by default 4; published 50."""
    attack_judged: bool = False
    """Attack judged triplets even where there are ordinal ones. By default the attack is on the ordinal ones, whose
    order is beyond doubt, and the loss without attack on the judged ones."""
    natural_weight: float | None = None
    """Weight of the loss on judged triplets as they are, beside 1 for the attacked ones; by default 2, of tune
    1.5; published 0."""
    noise: float = 0.0
    """Above 0: learn also to judge every triplet with Gaussian noise on p0 and p1, of a standard deviation drawn up to
    this in units of [-1, 1], so that smoothed rankings (`rlpips certify`) are right more often."""
    shift: int = 0
    """Above 0: crop the images of each triplet by this many pixels, and in half of the triplets move p0 and p1 together
    against the reference by up to as many, so that a shift of the images reverses fewer rankings."""
    ordinal_share: float = 0.5
    """Share of a batch that is ordinal, where there are both sorts."""
    dropout: float | None = None
    """Share of the squared differences to drop before each head, by default 0; published 0.5."""

    batch: int | None = None
    """Triplets per step, over all devices, by default 80, of tune 50; published 50."""
    accumulate: int = 1
    """Parts in which a batch passes through the network, to bound memory."""
    epochs: int | None = None
    """Passes over the data at the full rate, by default 0; published 5."""
    decay_epochs: int | None = None
    """Passes over which the rate falls linearly to 0, by default 2; published 5."""
    steps: int | None = None
    """Steps, in place of whole epochs; the rate falls over the last share decay_epochs / (epochs + decay_epochs)."""
    rate: float | None = None
    """Learning rate of Adam for heads and ranking head, by default 3e-2, of tune 1e-2; published 1e-4."""
    backbone_rate: float | None = None
    """Learning rate of the backbone; 0 leaves it unchanged. By default 0, of tune 3e-3, published 1e-4."""
    b1: float | None = None
    """Adam's decay of the first moment, by default 0.9; published 0.5."""
    floor: float = 0.0
    """Above 0: learn a floor c of the norms at each tap, f / sqrt(|f|^2 + c^2), which starts at this multiple of the
    median norm."""
    floor_rate: float = 2e-2
    """Learning rate of the floors' logarithms."""
    average: float = 0.0
    """Decay of an exponential moving average of the trained parameters, which is then evaluated and exported in their
    place; 0 for none."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type in which the network computes."""
    precision: Literal["default", "high", "highest"] = "default"
    """Precision of its convolutions while training; evaluation always has the highest."""

    evaluation_epsilons: tuple[str, ...] = ()
    """Radii of evaluation's attack, in units of [-1, 1]; by default 2/255 and 4/255, in l2 0.5 and 1."""
    evaluation_steps: int = 20
    """Steps of evaluation's attack."""

    changes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Differences of the mode from `RECIPES`, by protocol."""

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The protocol's recipe, with the options that were given in place of its own."""
        recipe = dataclasses.replace(RECIPES[self.protocol], **self.changes.get(self.protocol, {}))
        if self.attack != NO_ATTACK and ATTACKS[self.attack].unit == "pixels":
            recipe = dataclasses.replace(recipe, epsilon=(*ATTACKS[self.attack].measured, FLOW)[0])
        elif self.norm == "l2":
            recipe = dataclasses.replace(recipe, epsilon=L2_RADII[self.protocol])
        names = [field.name for field in dataclasses.fields(recipe)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(recipe, **given)

    @property
    def evaluation_radii(self) -> tuple[str, ...]:
        """Radii of evaluation's attack, as the user wrote them."""
        return self.evaluation_epsilons or EVALUATION_RADII[self.norm]

    def __post_init__(self) -> None:
        if self.attack not in (*names("objective"), NO_ATTACK):
            raise TrainingError(f"--attack must be one of {', '.join(names('objective'))} or none, got {self.attack}")
        options = self.settings
        self.check_counts(options)
        for name in RATES:
            if not 0 <= options[name] < math.inf:
                raise TrainingError(f"--{_option(name)} must be a number, 0 or more, got {options[name]:g}")
        if self.head_range is not None and not 1 < self.head_range < math.inf:
            raise TrainingError(f"--head-range must be a factor above 1, got {self.head_range:g}")
        if self.head_range is not None and self.recipe.initial_heads == "drawn":
            raise TrainingError("--head-range keeps heads near their start; give --initial-heads metric or equal")
        for name in ("dropout", "average", "b1"):
            if not 0 <= options[name] < 1:
                raise TrainingError(f"--{_option(name)} must lie in [0, 1), got {options[name]:g}")
        for text in (self.recipe.epsilon, *self.evaluation_epsilons):
            radius(text, "--epsilon" if text is self.recipe.epsilon else "--evaluation-epsilons")
        if self.recipe.epochs + self.recipe.decay_epochs < 1:
            raise TrainingError("--epochs 0 and --decay-epochs 0 leave no step; give one of them 1 or more")
        if self.protocol == "published" and self.attack not in ("pgd", NO_ATTACK):
            raise TrainingError(f"--protocol published has the attack pgd alone, not {self.attack}")
        if self.attack == NO_ATTACK and not self.recipe.natural_weight:
            raise TrainingError("without attack, --natural-weight must be more than 0")
        if self.photographs is not None and self.data != "photographs":
            raise TrainingError(f"--photographs is for --data photographs, not for --data {self.data}")
        if self.votes is not None and self.data == "bapps":
            raise TrainingError("--votes is not for --data bapps, whose triplets are people's votes already")
        if self.photographs is not None and self.split:
            raise TrainingError("--split is for BAPPS and folders of votes; photographs have none")
        if not 0 < self.ordinal_share < 1:
            raise TrainingError(f"--ordinal-share must lie between 0 and 1, got {self.ordinal_share:g}")

    @property
    def settings(self) -> dict[str, Any]:
        """All options by name, those of the recipe as they were chosen."""
        return super().settings | vars(self.recipe)


@dataclass(frozen=True, kw_only=True)
class Lin(Training):
    """R-LPIPS (lin): train the heads against attacks; the backbone does not change."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recipe.backbone_rate:
            raise TrainingError("lin does not train the backbone; give no --backbone-rate, or use tune")


@dataclass(frozen=True, kw_only=True)
class Tune(Training):
    """R-LPIPS (tune): train heads and backbone against attacks."""

    changes: ClassVar[Mapping[str, Mapping[str, Any]]] = TUNED

    out: Path = Path("runs/rlpips-tune")


@dataclass(frozen=True, kw_only=True)
class Natural(Training):
    """LPIPS: train the heads on triplets as they are."""

    out: Path = Path("runs/lpips")
    attack: AttackName = NO_ATTACK
    natural_weight: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack != NO_ATTACK:
            raise TrainingError(f"natural trains without attack; give no --attack {self.attack}, or use lin or tune")


def radius(text: str, option: str) -> float:
    """The value of a radius written as a number or a fraction, "2/255".

    Raises:
        TrainingError: it is neither, or negative.
    """
    try:
        value = read_radius(text)
    except ValueError:
        raise TrainingError(f"{option} must be a number or a fraction such as 2/255, got {text!r}") from None
    if value < 0:
        raise TrainingError(f"{option} must be 0 or more, got {text}")
    return value


def _option(name: str) -> str:
    return name.replace("_", "-")
