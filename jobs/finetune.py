"""One training as a job: tune one region of decoder layers and the projector; the last line printed is its JSON.

python jobs/finetune.py --placement uniform --layers 0.25 --mode lora
ray job submit --working-dir . -- python jobs/finetune.py --model DIR --data mine.json --images photos/
"""

import json
import sys

from vrray.api import finetune
from vrray.errors import VrrayError
from vrray.options import parse_options
from vrray.specs import FinetuneSpec


def main() -> int:
    try:
        result = finetune(**parse_options(FinetuneSpec, __doc__ or "").model_dump())
    except VrrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
