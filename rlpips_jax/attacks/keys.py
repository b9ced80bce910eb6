"""Which child of a key is for what, so that nothing is judged by draws that an attack has seen."""

import enum

import jax

from rlpips_jax.arguments import Key as Key
from rlpips_jax.arguments import check_key
from rlpips_jax.errors import AttackError


class Purpose(enum.IntEnum):
    """What the children of an attack's key are for; different numbers give different keys.

    `worst_case` and `attack_triplets` number the keys of the attacks that they start from 0, and use no child of their
    own key for a search.
    """

    OBJECTIVE = 0
    """The objective of the images and of what a search found."""
    SEARCH = 1
    """Starts and steps."""
    LAST = 2
    """The last iterate beside the best."""
    OUTCOME = 2**30
    """What is reported of a randomised metric: distances before and after."""
    CHOICE = 2**30 + 1
    """The choice among outcomes, and whether an impostor is within its bound."""


def as_key(key: Key) -> Key:
    """A key in the new style.

    Raises:
        AttackError: it is not one key of `jax.random`.
    """
    return check_key("an attack", key, error=AttackError)


def child(key: Key, purpose: Purpose) -> Key:
    """The key for a purpose, with the same errors."""
    return jax.random.fold_in(as_key(key), int(purpose))
