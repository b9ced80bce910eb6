"""PPGD and LPA beside perceptual-advex's own, on the same classifier, images, metric and bound."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.attacks import classification
from rlpips_jax.attacks.project_perceptual import perceptual_distance
from rlpips_jax.distances.resized import Resized
from training.classifier import Classifier, ResidualNetwork

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(importlib.util.find_spec("perceptual_advex") is None, reason="needs perceptual_advex 0.2.6"),
]
COUNT = 4


@pytest.fixture(scope="module")
def contest() -> Any:
    """A drawn classifier, right on all images, and an unweighted LPIPS over the small network."""
    from benchmarks.perceptual_attacks import Contest
    from tests.attacks.test_autoattack import tiny

    rng = np.random.default_rng(0)
    network = ResidualNetwork(5, (8,), 1)
    parameters = network.init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))["params"]
    leaves, tree = jax.tree.flatten(parameters)
    # Blocks begin as their shortcuts, with kernels that are 0.
    leaves = [leaf if leaf.any() else 0.05 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    classifier = Classifier(jax.tree.unflatten(tree, map(jnp.asarray, leaves)), network, tuple("abcde"))
    coarse = rng.uniform(0.1, 0.9, (COUNT, 8, 8, 3)).astype(np.float32)
    images = np.array(jax.image.resize(coarse, (COUNT, 24, 24, 3), "linear"))
    logits = np.asarray(classifier(jnp.asarray(images)))
    # Otherwise one class would be the answer to all images.
    classifier.parameters["Dense_0"]["bias"] = jnp.asarray(-logits.mean(axis=0))
    labels = (logits - logits.mean(axis=0)).argmax(axis=1)
    metric = Resized(rl.load("lpips-tiny", unweighted=True), 32, 32)
    return Contest(classifier, metric, tiny(), images, labels, 0.05, 5, 5)


def test_both_have_the_same_classifier_and_distance(contest: Any) -> None:
    import torch

    from benchmarks.perceptual_attacks import TorchClassifier, TorchFeatures, published

    images = torch.from_numpy(contest.images).permute(0, 3, 1, 2).contiguous()
    logits = TorchClassifier(contest.classifier)(images).numpy()
    np.testing.assert_allclose(logits, contest.classifier(jnp.asarray(contest.images)), rtol=1e-4, atol=1e-5)
    published()
    from perceptual_advex.distances import LPIPSDistance

    theirs = LPIPSDistance(TorchFeatures(contest.metric, contest.network))(images[1:], images[:-1]).numpy()
    features = contest.metric.features(contest.images)
    ours = perceptual_distance(
        contest.metric, *(jax.tree.map(lambda f, s=s: f[s], features) for s in (np.s_[1:], np.s_[:-1]))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("name", ["ppgd", "lpa"])
def test_ours_are_as_strong(contest: Any, name: str) -> None:
    ours, theirs = contest.ours(name), contest.theirs(name)
    objective = classification(contest.classifier, jnp.asarray(contest.labels))
    before, *after = (np.asarray(objective(jnp.asarray(images))) for images in (contest.images, ours, theirs))
    (fooled, outside, _), (other, _, _) = contest.judged(ours), contest.judged(theirs)
    assert outside == 0
    assert fooled >= other
    rise, reached = (np.mean(margins - before) for margins in after)
    assert reached > 0
    assert rise >= 0.97 * reached
