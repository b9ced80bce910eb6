"""`python -m training distill`: trains the metrics this project ships."""

import tyro

from training.distill import Distill, distill


def main() -> None:
    distill(tyro.extras.subcommand_cli_from_dict({"distill": Distill}, prog="python -m training"))


if __name__ == "__main__":
    main()
