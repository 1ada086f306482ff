"""An evaluation as a job: scores of a model, or of variants of a sweep, on tasks; the last line printed is their JSON.

python jobs/evaluate.py --model DIR --tasks tasks.yaml
python jobs/evaluate.py --sweep where --variants all uniform-8-prune2 --tasks easy-vqa tasks.yaml
"""

import json
import sys

from vrray.api import evaluate
from vrray.job import exit_status
from vrray.job_specs import EvaluateSpec
from vrray.options import parse_options


def main() -> None:
    spec = parse_options(EvaluateSpec, __doc__ or "")
    print(json.dumps(evaluate(**spec.model_dump()).summary()))


if __name__ == "__main__":
    sys.exit(exit_status(main))
