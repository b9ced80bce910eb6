"""Certificates that a ranking of images holds: randomised smoothing (Cohen, Rosenfeld and Kolter 2019).

For images x a ranking answers "kept" or "reversed". The *smoothed* ranking answers what the ranking answers most often
for x + e, e ~ N(0, sigma^2 I). If that answer has probability p > 1/2, it is the same for every x + delta with

    |delta|_2 < sigma Phi^-1(p),        Phi the normal distribution function,

whatever the metric. p is estimated by counting, and bounded from below (Clopper and Pearson 1934).

A ranking is given by an objective of `rlpips_jax.attacks`: a function of images `(n, ..., h, w, 3)`, one example per
entry of the first axis, that is positive where the order is reversed and negative where it is kept. A `Randomised`
objective is drawn anew with every draw of noise; p is then over both. The proof is the same: it needs of the ranking at
each x + e only the probability of its answer.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt8

from rlpips_jax.arguments import check_key, whole_number
from rlpips_jax.attacks import Randomised, attacked_images
from rlpips_jax.attacks.arguments import as_floats
from rlpips_jax.attacks.expectations import Randomness, triplet_objective
from rlpips_jax.attacks.objectives import as_pytree
from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.errors import CertificateError, ImageError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range

PATIENCE = 0.2
"""Seconds: if a call of the program takes less, the next one gets twice the work. Ctrl-C takes effect between calls."""


@runtime_checkable
class JudgedImages(Protocol):
    """References, two images to compare with each, and a judgment: the share of people who find p1 closer."""

    @property
    def reference(self) -> UInt8[np.ndarray, "n h w 3"]: ...

    @property
    def p0(self) -> UInt8[np.ndarray, "n h w 3"]: ...

    @property
    def p1(self) -> UInt8[np.ndarray, "n h w 3"]: ...

    @property
    def judgment(self) -> Float[np.ndarray, " n"]: ...


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """How rankings are smoothed, and how the answers are counted.

    `selection_samples` draws of noise guess the most frequent answer, and `samples` others count it: the largest radius
    that can be certified is sigma Phi^-1(alpha^(1/samples)), 2.46 sigma by default.

    Attributes:
        sigma: standard deviation of the noise, in units of the value range.
        samples: draws that count.
        selection_samples: draws that guess the answer.
        alpha: largest probability that a certificate is wrong.
        max_batch: most images given to the objective at once, but never fewer than there are. It bounds memory; results
            change by rounding alone.

    Raises:
        CertificateError: a number makes no sense, or `samples` are too few to certify anything at this alpha.
    """

    sigma: float | int
    samples: int = 1000
    selection_samples: int = 100
    alpha: float = 0.001
    max_batch: int = 64

    def __post_init__(self) -> None:
        for name, bound, words in (
            ("sigma", math.inf, "above 0 and finite, in units of value_range"),
            ("alpha", 1, "between 0 and 1, such as 0.001"),
        ):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float | np.number) or not 0 < number < bound:
                raise CertificateError(f"{name} must be a number {words}, got {number!r}")
        for name in ("samples", "selection_samples", "max_batch"):
            whole_number(name, getattr(self, name), error=CertificateError)
        best = self.alpha ** (1 / self.samples)
        if best <= 0.5:
            raise CertificateError(
                f"samples={self.samples} can certify nothing at alpha={self.alpha:g}: if all draws agreed, the lower "
                f"bound would be {best:.3g}, and it must be above 1/2; at least "
                f"{math.floor(-math.log2(self.alpha)) + 1} samples are needed"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificate:
    """The proven properties of the smoothed ranking of n examples.

    The certificate of each example holds with probability 1 - alpha or more, over the noise. For all n at once, use
    alpha / n.

    Attributes:
        reversed: `(n,)`, the smoothed ranking: whether the order is reversed. A guess where abstained.
        radius: `(n,)`, the ranking stays the same under every perturbation with a smaller l2 norm, over all numbers of
            an example, in units of the value range; 0 where abstained.
        lower_bound: `(n,)`, of the probability that an example under noise is ranked as guessed.
        count: `(n,)`, how many of the `samples` draws are ranked as guessed.
        abstained: `(n,)`, whether nothing is proven: the lower bound is not above 1/2.
        smoothing: the noise and the numbers of draws.
    """

    reversed: Bool[np.ndarray, " n"]
    radius: Float[np.ndarray, " n"]
    lower_bound: Float[np.ndarray, " n"]
    count: Int[np.ndarray, " n"]
    abstained: Bool[np.ndarray, " n"]
    smoothing: Smoothing


def certify(
    objective: Callable[..., Array],
    images: Images,
    smoothing: Smoothing,
    *,
    key: PRNGKeyArray,
    value_range: ValueRange = UNIT_RANGE,
) -> Certificate:
    """The smoothed ranking of each example, and the l2 radius within which it cannot change.

    Noise is not clipped to the value range, so the objective must accept images outside it, as LPIPS does; an objective
    that clips is valid too, but another ranking. Ties and NaN count for neither answer. The proof assumes exact
    Gaussian noise and real numbers.

    Args:
        objective: `images -> (n,)`, positive where the order is reversed, negative where it is kept, such as
            `rlpips_jax.attacks.ranking`; `rlpips_jax.attacks.objectives` says which are compiled once. It is called
            with all n examples at once, under `vmap` over several draws; a `Randomised` one without.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`: the images that an adversary may perturb.
        smoothing: the noise and the numbers of draws, such as `Smoothing(sigma=0.1)`.
        key: a key of `jax.random`. The draws of an example depend on it and on the place of the example.
        value_range: black and white of floating-point images, and of uint8 ones after conversion to floats.

    Returns:
        NumPy arrays; this cannot be called under `jit`. One compiled program serves every sigma, alpha and number of
        draws, and every batch of one shape.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or are not a batch.
        CertificateError: the key is not one, or the objective does not give one number per example.
    """
    value_range = check_value_range(value_range)
    key = check_key("the noise", key, error=CertificateError)
    return _certify(as_pytree(objective, value_range), batch_of_floats(images, value_range), key, 0, smoothing)


def certify_triplets(
    metric: Metric | RandomMetric,
    triplets: JudgedImages,
    smoothing: Smoothing,
    *,
    key: PRNGKeyArray,
    attacked: str = "both",
    start: int = 0,
    draws: int = 1,
) -> Certificate:
    """`certify` for the order in which people put each triplet, in batches.

    Noise on the closer image alone moves it away from its reference and so biases the smoothed ranking: under noise of
    0.1 LPIPS ranks most closer images as the farther ones. Under "both" the two images are treated alike, and what is
    proven for both holds if only one is perturbed.

    Args:
        metric: from `rlpips_jax.load`, or your own. A randomised one draws anew with every draw of noise: what is
            proven is about the order that it finds most often over both.
        triplets: `reference`, `p0` and `p1`, uint8 `(n, h, w, 3)`, and `judgment` `(n,)`: p1 is the closer image where
            it is above 1/2, p0 where it is below.
        smoothing: the noise and the numbers of draws; white is 1. `max_batch` bounds the images in the network.
        key: as in `certify`. The draws of a triplet depend on it and on the place of the triplet.
        attacked: which image may be perturbed, and gets noise: "closer", "farther", "both" or "reference". The radius
            for "both" is that of the two perturbations together, the root of the sum of their squares, and so holds for
            one of them alone too.
        start: the place of the first triplet in a larger set: the certificates of parts are those of the whole, by a
            randomised metric if they are cut into the same batches.
        draws: of a randomised metric, such as transformations: a ranking under noise is by the mean over so many.

    Returns:
        The certificate, with radii for white = 1. Where `reversed`, the smoothed ranking contradicts the judgment.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`.
        CertificateError: there are no triplets, a judgment is 1/2 or outside [0, 1], or as in `certify`.
        AttackError: `attacked` is not one of the four.
        EnsembleError: `draws` is not a whole number of 1 or more.
    """
    randomness = Randomness(draws=draws)
    key = check_key("the noise", key, error=CertificateError)
    judgment = _decided(triplets.judgment)
    swapped = (judgment > 0.5)[:, None, None, None]
    closer, farther = np.where(swapped, triplets.p1, triplets.p0), np.where(swapped, triplets.p0, triplets.p1)
    together = max(1, smoothing.max_batch // (2 if attacked == "both" else 1))
    # Batches of one size, so that one program serves them all.
    size = -(-len(judgment) // -(-len(judgment) // together))
    parts = []
    for first in range(0, len(judgment), size):
        places = np.minimum(np.arange(first, first + size), len(judgment) - 1)
        images = (triplets.reference[places], closer[places], farther[places])
        objective = triplet_objective(
            metric, images, attacked=attacked, randomness=randomness, key=key, value_range=UNIT_RANGE
        )
        moving = batch_of_floats(attacked_images(*images, attacked), UNIT_RANGE)
        parts.append(_certify(objective, moving, key, start + first, smoothing))
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])[: len(judgment)]
        for name in ("reversed", "radius", "lower_bound", "count", "abstained")
    }
    return Certificate(**columns, smoothing=smoothing)


def _decided(judgment: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Judgments with an order; raises a `CertificateError` if there are none, or one has no order."""
    judgment = np.asarray(judgment)
    if not len(judgment):
        raise CertificateError("there are no triplets")
    if bad := int(np.sum(~(((judgment >= 0) & (judgment <= 1)) & (judgment != 0.5)))):
        raise CertificateError(
            f"{bad} of {len(judgment)} judgments are 1/2 or not between 0 and 1, so that no order is right: leave such "
            "triplets out"
        )
    return judgment


def certified_accuracy(
    certificate: Certificate, radii: Float[np.ndarray, "..."] | Sequence[float | int]
) -> Float[np.ndarray, " r"]:
    """Share of examples ranked correctly under every perturbation of l2 norm below r, for each r.

    An example is ranked correctly if it is not reversed: the objective's order must be that of the judgment. An example
    with an abstention is not certified, not even at r = 0.

    Args:
        certificate: of one example or more.
        radii: in units of the value range, 0 or more.

    Raises:
        CertificateError: there are no examples, or a radius is negative or not a number.
    """
    asked = check_radii(radii)
    _check_examples(certificate)
    right = ~certificate.abstained & ~certificate.reversed
    return (right & (certificate.radius >= asked[:, None])).mean(axis=1)


def check_radii(radii: Float[np.ndarray, "..."] | Sequence[float | int]) -> Float[np.ndarray, " r"]:
    """Radii as an array; raises a `CertificateError` for what is not a list of numbers of 0 or more."""
    asked = np.asarray(radii, np.float64)
    if asked.ndim != 1 or not (asked >= 0).all():
        raise CertificateError(f"radii must be a list of numbers, each 0 or more, got {radii!r}")
    return asked


def draws_needed(radius: float | int, sigma: float | int, alpha: float = 0.001) -> int | float:
    """The fewest draws n that can certify a radius, if all of them agree: Phi(r / sigma) <= alpha^(1/n).

    Infinite where Phi(r / sigma) is 1 to the last digit.

    Args:
        radius: l2, in the units of sigma.
        sigma: standard deviation of the noise.
        alpha: largest probability that a certificate is wrong.
    """
    from scipy.special import log_ndtr

    logarithm = float(log_ndtr(radius / sigma))
    return max(1, math.ceil(math.log(alpha) / logarithm)) if logarithm else math.inf


def abstention_rate(certificate: Certificate) -> float:
    """Share of examples without a certificate. Raises `CertificateError` if there are no examples."""
    _check_examples(certificate)
    return float(certificate.abstained.mean())


def lower_confidence_bound(count: Int[np.ndarray, "..."], samples: int, alpha: float) -> Float[np.ndarray, "..."]:
    """The exact one-sided lower bound of a probability (Clopper and Pearson 1934).

    It is the p at which `count` or more successes in `samples` draws have probability alpha; 0 for no success.

    Args:
        count: successes, 0 to `samples`.
        samples: draws.
        alpha: largest probability that the bound lies above the true probability.
    """
    from scipy.special import betaincinv

    return np.where(count > 0, betaincinv(np.maximum(count, 1), samples - count + 1, alpha), 0.0)


class NoiseKeys(NamedTuple):
    """Keys for the noise of each example, and for the draws of a randomised objective, common to all."""

    noise: Key[Array, " n"]
    objective: Key[Array, ""]


def _certify(
    objective: Any, images: Float[Array, "n ..."], key: Key[Array, ""], start: int, smoothing: Smoothing
) -> Certificate:
    """The certificate of examples, the first of which is at place `start`."""
    from scipy.special import ndtri

    sigma, samples = float(smoothing.sigma), smoothing.samples
    draws = max(1, smoothing.max_batch // math.prod(images.shape[:-3]))
    select, count_by = (noise_keys(stage, start, len(images)) for stage in jax.random.split(key))
    kept, changed = _votes(objective, images, select, sigma, smoothing.selection_samples, draws)
    guess = changed > kept
    kept, changed = _votes(objective, images, count_by, sigma, samples, draws)
    count = np.where(guess, changed, kept)
    bound = lower_confidence_bound(count, samples, smoothing.alpha)
    abstained = bound <= 0.5
    return Certificate(
        reversed=guess,
        radius=np.where(abstained, 0.0, sigma * ndtri(bound)),
        lower_bound=bound,
        count=count,
        abstained=abstained,
        smoothing=smoothing,
    )


def _votes(
    objective: Any, images: Float[Array, "n ..."], keys: NoiseKeys, sigma: float, samples: int, draws: int
) -> Int[np.ndarray, "2 n"]:
    """The numbers of draws for which the order is kept, and for which it is reversed."""
    votes, done, blocks = jnp.zeros((2, len(images)), jnp.int32), 0, 1
    while done < samples:
        started = time.perf_counter()
        stop = min(done + blocks * draws, samples)
        votes = jax.block_until_ready(_add_votes(votes, objective, images, keys, sigma, done, stop, draws=draws))
        done = stop
        if time.perf_counter() - started < PATIENCE:
            blocks *= 2
    return np.asarray(votes)


@functools.partial(jax.jit, static_argnames="draws")
def _add_votes(
    votes: Int[Array, "2 n"],
    objective: Any,
    images: Float[Array, "n ..."],
    keys: NoiseKeys,
    sigma: float | Float[Array, ""],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
    *,
    draws: int,
) -> Int[Array, "2 n"]:
    """Adds the votes of the draws from start to stop, `draws` at once."""

    def add(number: Int[Array, ""], votes: Int[Array, "2 n"]) -> Int[Array, "2 n"]:
        places = start + number * draws + jnp.arange(draws)
        values = values_under_noise(objective, images, keys, sigma, places)
        counted = (places < stop)[:, None]
        return votes + jnp.stack([jnp.sum(counted & (values < 0), axis=0), jnp.sum(counted & (values > 0), axis=0)])

    return lax.fori_loop(0, -((start - stop) // draws), add, votes)


def values_under_noise(
    objective: Any,
    images: Float[Array, "n ..."],
    keys: NoiseKeys,
    sigma: float | Float[Array, ""],
    draws: Int[Array, " s"],
) -> Float[Array, "s n"]:
    """The objective of each example under each of these draws of noise.

    Raises:
        CertificateError: the objective does not give one number per example.
    """

    def value(draw: Int[Array, ""]) -> Float[Array, " n"]:
        def noise(key: Key[Array, ""]) -> Float[Array, "..."]:
            return jax.random.normal(jax.random.fold_in(key, draw), images.shape[1:], images.dtype)

        noisy = images + jnp.asarray(sigma, images.dtype) * jax.vmap(noise)(keys.noise)
        if isinstance(objective, Randomised):
            return objective.function(noisy, jax.random.fold_in(keys.objective, draw))
        return objective(noisy)

    # Under vmap, an ensemble that draws one scale would compute all.
    values = lax.map(value, draws) if isinstance(objective, Randomised) else jax.vmap(value)(draws)
    if getattr(values, "shape", None) != (len(draws), len(images)):
        found = jax.tree.map(lambda leaf: leaf.shape[1:], values)
        raise CertificateError(
            f"an objective gives one number per example, so an array of shape ({len(images)},), not {found}"
        )
    return values


def noise_keys(key: Key[Array, ""], start: int, number: int) -> NoiseKeys:
    """Keys that depend on the places of examples, not on their number."""
    noise, objective = jax.random.split(key)
    places = jnp.arange(start, start + number)
    return NoiseKeys(
        jax.vmap(functools.partial(jax.random.fold_in, noise))(places), jax.random.fold_in(objective, start)
    )


def batch_of_floats(images: Images, value_range: ValueRange) -> Float[Array, "n ..."]:
    """A batch as floats of at least 32 bits in the value range."""
    if isinstance(images, Tracer):
        raise CertificateError("images are traced: a certificate is made of counts; call this outside jit and vmap")
    (images,) = check_images(value_range, images=images)
    if images.ndim < 4 or not len(images):
        raise ImageError(f"images has shape {tuple(images.shape)}; a batch of one or more, (n, h, w, 3), is needed")
    return as_floats(images, value_range)[0]


def _check_examples(certificate: Certificate) -> None:
    if not len(certificate.reversed):
        raise CertificateError("the certificate has no examples, so there is no share of them")
