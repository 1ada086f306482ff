"""All benchmarks by their names."""

from __future__ import annotations

import difflib

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.bbh import BBH
from vrray.evaluate.benchmarks.diagrams import AI2D, CHARTQA
from vrray.evaluate.benchmarks.documents import DOCVQA, INFOGRAPHICVQA
from vrray.evaluate.benchmarks.exams import CEVAL, CMMLU, MMLU
from vrray.evaluate.benchmarks.gqa import GQA
from vrray.evaluate.benchmarks.hallusionbench import HALLUSIONBENCH
from vrray.evaluate.benchmarks.mmbench import MMBENCH
from vrray.evaluate.benchmarks.mme import MME
from vrray.evaluate.benchmarks.mmmu import MMMU
from vrray.evaluate.benchmarks.pope import POPE
from vrray.evaluate.benchmarks.question import Benchmark
from vrray.evaluate.benchmarks.scienceqa import SCIENCEQA, SCIENCEQA_IMG
from vrray.evaluate.benchmarks.seedbench import SEEDBENCH
from vrray.evaluate.benchmarks.vqa import OCRVQA, STVQA, TEXTVQA, VQAV2

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        OCRVQA,
        DOCVQA,
        INFOGRAPHICVQA,
        TEXTVQA,
        STVQA,
        VQAV2,
        GQA,
        SCIENCEQA,
        SCIENCEQA_IMG,
        MMBENCH,
        MMMU,
        SEEDBENCH,
        MME,
        POPE,
        AI2D,
        CHARTQA,
        HALLUSIONBENCH,
        MMLU,
        BBH,
        CEVAL,
        CMMLU,
    )
}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name; case, spaces, hyphens and underscores do not count.

    Raises:
        DataError: there is none; names the nearest.
    """
    by_key = {_key(known): benchmark for known, benchmark in BENCHMARKS.items()}
    if _key(name) in by_key:
        return by_key[_key(name)]
    near = difflib.get_close_matches(_key(name), by_key, n=1)
    guess = f"did you mean {by_key[near[0]].name!r}? " if near else ""
    raise DataError(f"task {shown(name)} is unknown; {guess}known are {', '.join(BENCHMARKS)}")


def _key(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign not in " -_")
