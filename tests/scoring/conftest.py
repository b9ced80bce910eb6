"""The pictures and processes of the tests of the command line."""

from tests.cli.conftest import draw as draw
from tests.cli.conftest import one_by_one as one_by_one
from tests.cli.conftest import rlpips as rlpips
from tests.cli.conftest import start as start
from tests.cli.conftest import tiny as tiny
