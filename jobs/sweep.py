"""A sweep as a job: tune regions of decoder layers, prune outside them, score every variant, write the table.

python jobs/sweep.py --placements all uniform bottom top --layers 0.25
ray job submit --working-dir . -- python jobs/sweep.py --config sweep.yaml
"""

import sys

import vrray
from vrray.api import connected
from vrray.options import parse_options
from vrray.specs import SweepSpec
from vrray.sweep.run import run_sweep


def main() -> int:
    try:
        spec = parse_options(SweepSpec, __doc__ or "")
        with connected():
            outcome = run_sweep(spec)
    except vrray.VrrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished work is in the store, the same command goes on from there", file=sys.stderr)
        return 130
    print(f"report: {outcome.folder}/report.md ({outcome.seconds:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
