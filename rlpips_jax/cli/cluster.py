"""`rlpips distance --ray`: the results of a set in a folder of files, computed by the nodes of a Ray cluster."""

import contextlib
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from rlpips_jax.cli import interrupts, say
from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.errors import RlpipsError
from rlpips_jax.scoring import AllPairs, Pair, Scoring
from rlpips_jax.scoring.clusters import Resources, find_ray, score_on_cluster
from rlpips_jax.scoring.parts import PartForm

LOCAL = "local"
"""In place of an address: a cluster of this machine alone."""


def connect(address: str) -> None:
    """Joins the cluster at an address, "auto" for the one that this machine belongs to, or starts one here.

    Raises:
        RlpipsError: Ray is not installed, or there is no cluster.
    """
    ray = find_ray()
    options = {"include_dashboard": False} if address == LOCAL else {"address": address}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's, about its own future.
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RlpipsError(
                f"there is no Ray cluster at {address} ({error}): start one with 'ray start --head', or give --ray "
                f"{LOCAL} for this machine alone"
            ) from error


def score_to_folder(
    pairs: Iterable[Pair] | AllPairs,
    metric: Metric | RandomMetric,
    out: Path,
    *,
    scoring: Scoring,
    form: PartForm,
    resources: Resources,
) -> int:
    """Computes what is missing in the folder, tells errors, and returns the exit status.

    Args:
        pairs: to compare.
        metric: any.
        out: the folder.
        scoring: how files are read, and what is computed besides.
        form: of the files.
        resources: of each process.
    """
    count = failed = recorded = 0
    parts = score_on_cluster(pairs, metric, out, scoring=scoring, form=form, resources=resources)
    total = len(pairs) if isinstance(pairs, AllPairs | list) else None
    with tqdm(total=total, unit="pair", disable=None) as bar, interrupts.deferred(), contextlib.closing(parts):
        for part in parts:
            interrupts.check()
            bar.update(len(part))
            count += len(part)
            recorded += sum(result.recorded for result in part)
            errors = [result.error for result in part if result.error is not None]
            failed += len(errors)
            for error in dict.fromkeys(errors):
                say(error)
    if recorded:
        say(f"{out} held {recorded} of {count} pairs already")
    return 0 if not failed else 1 if failed < count else 2
