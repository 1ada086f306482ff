"""A sweep as a job: tune regions of decoder layers, prune outside them, score every variant, write table and report.

python jobs/sweep.py --placements all uniform bottom top --layers 0.25
ray job submit --working-dir . -- python jobs/sweep.py --config sweep.yaml
"""

import sys

from vrray.api import run
from vrray.errors import VrrayError
from vrray.options import parse_options
from vrray.specs import SweepSpec


def main() -> int:
    try:
        run(parse_options(SweepSpec, __doc__ or ""))
    except VrrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished work is in the store, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
