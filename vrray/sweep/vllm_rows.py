"""Rows of Ray Data as they go to vLLM and come back. Light to import: every worker that prepares rows does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vrray.data.images import Images


@dataclass(frozen=True)
class Request:
    """What a row asks: greedy decoding, and its image (a name, or "") as vrray opens it."""

    images: Images

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "sampling_params": {"temperature": 0.0, "max_tokens": int(row["max_tokens"])},
            "multimodal_data": {"image": self.images.open(row["image"])} if row["image"] else None,
        }


def reply(row: dict[str, Any]) -> dict[str, Any]:
    """The text that was generated, and the question's place."""
    return {"part": int(row["part"]), "place": int(row["place"]), "text": row["generated_text"]}
