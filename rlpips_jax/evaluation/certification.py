"""Certificates that a ranking of images holds: randomised smoothing (Cohen, Rosenfeld and Kolter 2019).

Of images x, a ranking says "kept" or "reversed". Its *smoothed* ranking says what it says most often of x + e,
e ~ N(0, sigma^2 I). If it says so with probability p > 1/2, it says the same of every x + delta with

    |delta|_2 < sigma Phi^-1(p),        Phi the normal distribution function,

whatever the metric behind it. p is not known but counted, and bounded from below (Clopper and Pearson 1934).

A ranking is given by an objective of `rlpips_jax.attacks`: a function of images `(n, ..., h, w, 3)`, an example each
along the first axis, that is positive where the order is reversed and negative where it is kept. Of a `Randomised` one
every draw of noise takes its own draw; p is then over both, and the proof is the same.
"""

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt8

from rlpips_jax.attacks import Randomised, attacked_images, ranking
from rlpips_jax.attacks.arguments import as_floats
from rlpips_jax.attacks.objectives import as_pytree
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.errors import CertificateError, ImageError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range

PATIENCE = 0.2
"""Seconds: while less passes in one call of the program, the next is given twice the work. Between calls Ctrl-C is
answered."""


@runtime_checkable
class Triplets(Protocol):
    """References, two images to compare with each, and a judgment: the share of people who find p1 closer."""

    @property
    def reference(self) -> UInt8[np.ndarray, "n h w 3"]: ...

    @property
    def p0(self) -> UInt8[np.ndarray, "n h w 3"]: ...

    @property
    def p1(self) -> UInt8[np.ndarray, "n h w 3"]: ...

    @property
    def judgment(self) -> Float[np.ndarray, " n"]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificate:
    """What is proven of the smoothed ranking of n examples, an entry each.

    Each holds with probability 1 - alpha at least, over the noise drawn. For all n at once, ask for alpha / n.

    Attributes:
        reversed: what the smoothed ranking says: whether the order is reversed. A guess where abstained.
        radius: the ranking stays the same under every perturbation with a smaller l2 norm, over all numbers of an
            example, in units of the value range; 0 where abstained.
        lower_bound: of the probability that an example under noise is ranked as guessed.
        count: draws, out of `samples`, ranked as guessed.
        abstained: whether nothing is proven: the lower bound is not above 1/2.
        samples: draws counted.
        sigma: standard deviation of the noise, in units of the value range.
        alpha: largest probability of an error.
    """

    reversed: Bool[np.ndarray, " n"]
    radius: Float[np.ndarray, " n"]
    lower_bound: Float[np.ndarray, " n"]
    count: Int[np.ndarray, " n"]
    abstained: Bool[np.ndarray, " n"]
    samples: int
    sigma: float
    alpha: float


def certify(
    objective: Any,
    images: Images,
    *,
    key: PRNGKeyArray,
    sigma: float | int,
    samples: int = 1000,
    selection_samples: int = 100,
    alpha: float = 0.001,
    value_range: ValueRange = UNIT_RANGE,
    max_batch: int = 64,
) -> Certificate:
    """The smoothed ranking of each example, and the l2 radius within which it cannot change.

    `selection_samples` draws of noise guess what the ranking says most often, and `samples` others count how often:
    at most sigma Phi^-1(alpha^(1/samples)) can be certified, 2.46 sigma by default. Noise is not clipped to the value
    range, so the objective must take images outside it, as LPIPS does; an objective that clips is as good, but another
    ranking. Ties and NaN count for neither side. The proof is about exact Gaussian noise and real numbers.

    Args:
        objective: `images -> (n,)`, positive where the order is reversed, negative where it is kept; from
            `rlpips_jax.attacks.ranking`, or see `rlpips_jax.attacks.objectives` for which are compiled once. It is
            given all n examples at once, under `vmap` by several draws.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`: what an adversary may perturb.
        key: from `jax.random.key`. The draws of an example follow from it and the example's place in the batch.
        sigma: standard deviation of the noise, in units of `value_range`.
        samples: draws that are counted.
        selection_samples: draws that guess the side.
        alpha: largest probability that a certificate is wrong.
        value_range: black and white of floating-point images, and of uint8 ones once they are floats.
        max_batch: most images given to the objective at once, but never fewer than `images` has. Bounds memory, not
            results: other blocks change an objective by rounding alone.

    Returns:
        NumPy arrays; this cannot be called under `jit`. One compiled program serves every sigma, alpha and number of
        draws, and every batch of one shape.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or are no batch.
        CertificateError: a number makes no sense, `samples` are too few to certify anything at this alpha, or the
            objective does not give one number an example.
    """
    options = _checked_options(sigma, samples, selection_samples, alpha, max_batch)
    value_range = check_value_range(value_range)
    objective = as_pytree(objective, value_range)
    return _certify(objective, _floats(images, value_range), _checked_key(key), 0, options)


def certify_triplets(
    metric: Metric,
    triplets: Triplets,
    *,
    key: PRNGKeyArray,
    sigma: float | int,
    attacked: str = "both",
    samples: int = 1000,
    selection_samples: int = 100,
    alpha: float = 0.001,
    max_batch: int = 64,
    start: int = 0,
) -> Certificate:
    """`certify` of the order in which people put each triplet, in batches.

    Noise on the closer image alone moves it away from its reference, and so bends the smoothed ranking: under noise of
    0.1 LPIPS finds most of them the farther ones. Under "both" the two are treated alike, and what is proven of both
    holds where only one is perturbed.

    Args:
        metric: from `rlpips_jax.load`.
        triplets: `reference`, `p0` and `p1`, uint8 `(n, h, w, 3)`, and `judgment` `(n,)`: p1 is the closer image where
            it is above 1/2, p0 where it is below.
        key: as in `certify`. The draws of a triplet follow from it and the triplet's place.
        sigma: standard deviation of the noise; white is 1.
        attacked: which image is perturbed, and gets noise: "closer", "farther", "both" or "reference". Of "both" the
            radius is that of the two perturbations together, the root of the sum of their squares, and so holds for one
            of them alone too. Noise on the closer image alone moves it away from its reference, which often reverses
            the smoothed ranking.
        samples: as in `certify`.
        selection_samples: as in `certify`.
        alpha: as in `certify`.
        max_batch: most images in the network at once. Bounds memory, not results.
        start: the place of the first triplet, where these are part of a larger set: parts give what the whole does.

    Returns:
        Where `reversed`, the smoothed ranking contradicts the judgment. Radii are as for white = 1.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`.
        CertificateError: there are no triplets, a judgment is 1/2 or none, or as in `certify`.
        AttackError: `attacked` is none of the four.
    """
    options = _checked_options(sigma, samples, selection_samples, alpha, max_batch)
    key = _checked_key(key)
    judgment = np.asarray(triplets.judgment)
    if not len(judgment):
        raise CertificateError("there are no triplets")
    if bad := int(np.sum(~(((judgment >= 0) & (judgment <= 1)) & (judgment != 0.5)))):
        raise CertificateError(
            f"{bad} of {len(judgment)} judgments are 1/2 or not between 0 and 1, so that no order is right: leave such "
            "triplets out"
        )
    swapped = (judgment > 0.5)[:, None, None, None]
    closer, farther = np.where(swapped, triplets.p1, triplets.p0), np.where(swapped, triplets.p0, triplets.p1)
    together = max(1, max_batch // (2 if attacked == "both" else 1))
    # Batches of one size, so that one program serves them all.
    size = -(-len(judgment) // -(-len(judgment) // together))
    parts = []
    for first in range(0, len(judgment), size):
        places = np.minimum(np.arange(first, first + size), len(judgment) - 1)
        images = (triplets.reference[places], closer[places], farther[places])
        objective = ranking(metric, *images, attacked=attacked)
        moving = _floats(attacked_images(*images, attacked), UNIT_RANGE)
        parts.append(_certify(objective, moving, key, start + first, options))
    fields = {
        name: np.concatenate([getattr(part, name) for part in parts])[: len(judgment)]
        for name in ("reversed", "radius", "lower_bound", "count", "abstained")
    }
    return replace(parts[0], **fields)


def certified_accuracy(
    certificate: Certificate, radii: Float[np.ndarray, "..."] | Sequence[float | int]
) -> Float[np.ndarray, " r"]:
    """Share of examples ranked right whatever a perturbation of l2 norm below r does, for each r.

    Right is what is not reversed: the objective's order must be the judgment's. What was abstained from is not
    certified, at r = 0 neither.

    Args:
        certificate: of one example or more.
        radii: in units of the value range, 0 or more.

    Raises:
        CertificateError: there are no examples, or a radius is negative or no number.
    """
    asked = np.asarray(radii, np.float64)
    if asked.ndim != 1 or not (asked >= 0).all():
        raise CertificateError(f"radii must be a list of numbers, each 0 or more, got {radii!r}")
    _check_examples(certificate)
    right = ~certificate.abstained & ~certificate.reversed
    return (right & (certificate.radius >= asked[:, None])).mean(axis=1)


def abstention_rate(certificate: Certificate) -> float:
    """Share of examples of which nothing is proven. Raises `CertificateError` if there are no examples."""
    _check_examples(certificate)
    return float(certificate.abstained.mean())


def lower_confidence_bound(count: Int[np.ndarray, "..."], samples: int, alpha: float) -> Float[np.ndarray, "..."]:
    """The exact one-sided lower bound of a probability (Clopper and Pearson 1934).

    It is the p at which `count` successes or more in `samples` draws have probability alpha; 0 for no success.

    Args:
        count: successes, 0 to `samples`.
        samples: draws.
        alpha: probability with which a bound may lie above the true probability, at most.
    """
    from scipy.special import betaincinv

    return np.where(count > 0, betaincinv(np.maximum(count, 1), samples - count + 1, alpha), 0.0)


class _Options(NamedTuple):
    sigma: float
    samples: int
    selection_samples: int
    alpha: float
    max_batch: int


class _Keys(NamedTuple):
    """Of the noise of each example, and of what a randomised objective draws for all."""

    noise: Key[Array, " n"]
    objective: Key[Array, ""]


def _certify(
    objective: Any, images: Float[Array, "n ..."], key: Key[Array, ""], start: int, options: _Options
) -> Certificate:
    """The certificate of examples of which the first is at place `start`."""
    from scipy.special import ndtri

    sigma, samples, selection_samples, alpha, max_batch = options
    draws = max(1, max_batch // math.prod(images.shape[:-3]))
    select, count_by = (_keys(stage, start, len(images)) for stage in jax.random.split(key))
    kept, changed = _votes(objective, images, select, sigma, selection_samples, draws)
    guess = changed > kept
    kept, changed = _votes(objective, images, count_by, sigma, samples, draws)
    count = np.where(guess, changed, kept)
    bound = lower_confidence_bound(count, samples, alpha)
    abstained = bound <= 0.5
    return Certificate(
        reversed=guess,
        radius=np.where(abstained, 0.0, sigma * ndtri(bound)),
        lower_bound=bound,
        count=count,
        abstained=abstained,
        samples=samples,
        sigma=sigma,
        alpha=alpha,
    )


def _votes(
    objective: Any, images: Float[Array, "n ..."], keys: _Keys, sigma: float, samples: int, draws: int
) -> Int[np.ndarray, "2 n"]:
    """How many of the draws say that the order is kept, and how many that it is reversed."""
    votes, done, blocks = jnp.zeros((2, len(images)), jnp.int32), 0, 1
    while done < samples:
        started = time.perf_counter()
        stop = min(done + blocks * draws, samples)
        votes = jax.block_until_ready(_add_votes(votes, objective, images, keys, sigma, done, stop, draws))
        done = stop
        if time.perf_counter() - started < PATIENCE:
            blocks *= 2
    return np.asarray(votes)


@functools.partial(jax.jit, static_argnums=7)
def _add_votes(
    votes: Int[Array, "2 n"],
    objective: Any,
    images: Float[Array, "n ..."],
    keys: _Keys,
    sigma: float | Float[Array, ""],
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
    draws: int,
) -> Int[Array, "2 n"]:
    """Adds the votes of the draws from start to stop, so many at once."""

    def value(sample: Int[Array, ""]) -> Float[Array, " n"]:
        def noise(key: Key[Array, ""]) -> Float[Array, "..."]:
            return jax.random.normal(jax.random.fold_in(key, sample), images.shape[1:], images.dtype)

        noisy = images + jnp.asarray(sigma, images.dtype) * jax.vmap(noise)(keys.noise)
        if isinstance(objective, Randomised):
            return objective.function(noisy, jax.random.fold_in(keys.objective, sample))
        return objective(noisy)

    def add(number: Int[Array, ""], votes: Int[Array, "2 n"]) -> Int[Array, "2 n"]:
        places = start + number * draws + jnp.arange(draws)
        values = jax.vmap(value)(places)
        if getattr(values, "shape", None) != (draws, len(images)):
            found = jax.tree.map(lambda leaf: leaf.shape[1:], values)
            raise CertificateError(
                f"an objective gives one number an example, so an array of shape ({len(images)},), not {found}"
            )
        counted = (places < stop)[:, None]
        return votes + jnp.stack([jnp.sum(counted & (values < 0), axis=0), jnp.sum(counted & (values > 0), axis=0)])

    return lax.fori_loop(0, -((start - stop) // draws), add, votes)


def _keys(key: Key[Array, ""], start: int, number: int) -> _Keys:
    """Keys that depend on the places of examples, and not on how many there are."""
    noise, objective = jax.random.split(key)
    places = jnp.arange(start, start + number)
    return _Keys(jax.vmap(functools.partial(jax.random.fold_in, noise))(places), jax.random.fold_in(objective, start))


def _floats(images: Images, value_range: ValueRange) -> Float[Array, "n ..."]:
    """A batch as floats, at least float32, in the value range."""
    if isinstance(images, Tracer):
        raise CertificateError("images are traced: a certificate is made of counts, so call this outside jit and vmap")
    (images,) = check_images(value_range, images=images)
    if images.ndim < 4 or not len(images):
        raise ImageError(f"images has shape {tuple(images.shape)}; a batch of one or more, (n, h, w, 3), is needed")
    return as_floats(images, value_range)[0]


def _checked_key(key: PRNGKeyArray) -> Key[Array, ""]:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if typed and not key.ndim:
        return key
    if isinstance(key, jax.Array | np.ndarray) and (key.dtype, key.shape) == (np.uint32, (2,)):
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise CertificateError(f"key must be one key of jax.random, such as jax.random.key(0), got {key!r}")


def _checked_options(sigma: Any, samples: Any, selection_samples: Any, alpha: Any, max_batch: Any) -> _Options:
    for name, number, bound in (("sigma", sigma, math.inf), ("alpha", alpha, 1)):
        if isinstance(number, bool) or not isinstance(number, int | float | np.number) or not 0 < number < bound:
            where = (
                "above 0 and finite, in units of value_range" if name == "sigma" else "between 0 and 1, such as 0.001"
            )
            raise CertificateError(f"{name} must be a number {where}, got {number!r}")
    for name, number in (("samples", samples), ("selection_samples", selection_samples), ("max_batch", max_batch)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise CertificateError(f"{name} must be a whole number, 1 or more, got {number!r}")
    best = alpha ** (1 / samples)
    if best <= 0.5:
        raise CertificateError(
            f"samples={samples} can certify nothing at alpha={alpha:g}: were all of one mind, the lower bound would be "
            f"{best:.3g}, and 1/2 must be passed; at least {math.floor(-math.log2(alpha)) + 1} samples are needed"
        )
    return _Options(float(sigma), int(samples), int(selection_samples), float(alpha), int(max_batch))


def _check_examples(certificate: Certificate) -> None:
    if not len(certificate.reversed):
        raise CertificateError("the certificate has no examples, so there is no share of them")
