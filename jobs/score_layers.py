"""Layer scores as a job: which decoder layers matter, by every score, how sure that is, and how far they agree.

python jobs/score_layers.py --model smol --calibration 48
python jobs/score_layers.py --model DIR --data mine.json --scores angular bi gradient
python jobs/score_layers.py --of all --scores change angular
"""

import sys

from vrray.api import score_layers
from vrray.job import exit_status
from vrray.job_specs import ScoreSpec
from vrray.options import parse_options


def main() -> None:
    score_layers(**parse_options(ScoreSpec, __doc__ or "").model_dump())


if __name__ == "__main__":
    sys.exit(exit_status(main))
