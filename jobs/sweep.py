"""A sweep as a job: tune regions of decoder layers, prune outside them, score every variant, write table and report.

python jobs/sweep.py --placements all uniform bottom top --layers 0.25
ray job submit --working-dir . -- python jobs/sweep.py --config sweep.yaml
"""

import sys

from vrray.api import run
from vrray.job import exit_status
from vrray.options import parse_options
from vrray.specs import SweepSpec


def main() -> None:
    run(parse_options(SweepSpec, __doc__ or ""))


if __name__ == "__main__":
    sys.exit(exit_status(main))
