"""One training as a job: tune one region of decoder layers and the projector; the last line printed is its JSON.

python jobs/finetune.py --placement uniform --layers 0.25 --mode lora
ray job submit --working-dir . -- python jobs/finetune.py --model DIR --data mine.json --image-folder photos/
"""

import json
import sys

from vrray.api import finetune
from vrray.job import exit_status
from vrray.job_specs import FinetuneSpec
from vrray.options import parse_options


def main() -> None:
    spec = parse_options(FinetuneSpec, __doc__ or "")
    print(json.dumps(finetune(**spec.model_dump())))


if __name__ == "__main__":
    sys.exit(exit_status(main))
