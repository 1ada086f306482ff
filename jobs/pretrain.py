"""Stage 1 as a job: train the projector alone, on captions; the last line printed is its JSON.

python jobs/pretrain.py --model DIR --data captions.json --image-folder photos/ --projector-steps 2000
"""

import json
import sys

from vrray.api import pretrain_projector
from vrray.job import exit_status
from vrray.job_specs import PretrainSpec
from vrray.options import parse_options


def main() -> None:
    spec = parse_options(PretrainSpec, __doc__ or "")
    print(json.dumps(pretrain_projector(**spec.model_dump())))


if __name__ == "__main__":
    sys.exit(exit_status(main))
