"""`python -m benchmarks.clusters`: thousands of pairs over a Ray cluster of two nodes on this machine.

Scores them in one process first; then over two nodes of one core each; then again, one of the nodes being killed in the
middle. Prints the throughput, whether every pair is there once, and how far its number is from that of one process.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import rlpips_jax as rl
from benchmarks.report import machine
from benchmarks.sets import Sets, draw
from rlpips_jax.scoring import Pair, Result, pairs_in_list, score, score_on_cluster
from rlpips_jax.scoring.clusters import find_ray

CLUSTER = """
import sys
from ray.cluster_utils import Cluster

here = {"num_cpus": 1}
cluster = Cluster(initialize_head=True, head_node_args=here | {"include_dashboard": False})
node = cluster.add_node(**here)
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(node, allow_graceful=False)
    print("killed", flush=True)
cluster.shutdown()
"""
"""Starts a head and a node of one core each, kills the node at each line, and ends where its input does."""


@dataclass(frozen=True)
class Clusters:
    """Score pairs over two nodes, one of which is killed."""

    files: int = 2000
    """Image files to draw; half of them are references."""
    pairs: int = 20_000
    """Pairs of them."""
    metric: str = "lpips-tiny"
    """Name of the metric."""


def pairs_of(config: Clusters, folder: Path) -> list[Pair]:
    """Every reference with several images of its size."""
    listed = list(pairs_in_list(draw(Sets(out=folder, files=config.files, sizes=4, smallest=64, largest=96))))
    by_size: dict[tuple[int, ...], list[Pair]] = {}
    for pair in listed:
        by_size.setdefault(rl.load_image(pair.reference).shape, []).append(pair)
    found = []
    for shift in range(config.pairs):
        for group in by_size.values():
            for at, pair in enumerate(group):
                found.append(Pair(pair.reference, group[(at + shift) % len(group)].image))
                if len(found) == config.pairs:
                    return found
    return found


def compared(found: list[Result], expected: list[Result]) -> str:
    """What became of the pairs."""
    counts = Counter((result.reference, result.image) for result in found)
    wanted = Counter((result.reference, result.image) for result in expected)
    numbers = {(result.reference, result.image): result.distance for result in found}
    error = max(abs(float(numbers[r.reference, r.image]) - float(r.distance)) for r in expected)  # pyright: ignore
    return (
        f"{len(found)} results, {(wanted - counts).total()} lost, {(counts - wanted).total()} doubled, largest "
        f"difference from one process {error:.1e}"
    )


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[str, Callable[[], object]]]:
    """The address of a cluster of two nodes on this machine, and what kills one of them.

    They are started by a process without JAX, whose threads would not survive the forks.
    """
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def kill() -> None:
            stdin.write("kill\n")
            stdin.flush()
            stdout.readline()

        address = stdout.readline().strip()
        if not address:
            raise RuntimeError("the cluster did not start; its reason stands above")
        try:
            yield address, kill
        finally:
            stdin.close()


def over_two_nodes(pairs: list[Pair], metric: Any, out: Path, *, kill: bool) -> tuple[list[Result], float]:
    """All results in the folder, and the seconds, without the start of the cluster but with that of its processes."""
    ray = find_ray()
    with two_nodes() as (address, kill_one):
        ray.init(address=address, log_to_driver=False)
        try:
            started, results = time.perf_counter(), []
            for part in score_on_cluster(pairs, metric, out):
                results += part
                if kill and len(results) > len(pairs) // 2:
                    kill_one()
                    kill = False
            return results, time.perf_counter() - started
        finally:
            ray.shutdown()


def main(config: Clusters) -> None:
    """Measures and prints."""
    metric = rl.load(config.metric)
    with tempfile.TemporaryDirectory() as name:
        pairs = pairs_of(config, Path(name) / "files")
        print(f"{len(pairs)} pairs, {config.metric}; {machine()['cores']} cores")
        started = time.perf_counter()
        expected = list(score(pairs, metric))
        alone = time.perf_counter() - started
        print(f"one process and its readers: {alone:.1f} s, {len(pairs) / alone:.0f} pairs/s", flush=True)
        for kill in (False, True):
            out = Path(name) / f"scores{int(kill)}"
            found, taken = over_two_nodes(pairs, metric, out, kill=kill)
            what = "two nodes, one of them killed half-way" if kill else "two nodes"
            print(f"{what}: {taken:.1f} s, {len(pairs) / taken:.0f} pairs/s, {alone / taken:.2f} of one process's")
            print(f"  {compared(found, expected)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Clusters, prog="python -m benchmarks.clusters"))
