"""The books of a recording: every token the model ran is accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass
class Completeness:
    """Tokens that were asked for against tokens recorded; kept in run.json."""

    expected_tokens: int = 0
    """Tokens of all rows the model had to run, by the lists of who asked for them."""
    stored_tokens: int = 0
    shared_tokens: int = 0
    """Run, and stored by an earlier sequence with the same beginning."""
    unsampled_tokens: int = 0
    """Run, and left out by document sampling."""
    computed_tokens: int = 0
    """Token slots the model ran while its hooks were attached, padding and probes included."""
    padding_tokens: int = 0
    probe_tokens: int = 0
    """Slots of batches that only measured memory."""
    after_stop_tokens: int = 0
    """Slots a finished sequence still took while others in its batch went on."""
    superseded_tokens: int = 0
    """Slots of tokens that were run again later, or of drafts that were rejected."""
    lost_tokens: int = 0
    """Tokens of requests that could not be recorded completely, so that nothing of them was."""
    missing_tokens: int = 0
    """Of the tokens lost or superseded, those whose rows never came."""
    unmatched_tokens: int = 0
    """Slots of rows that no request explains."""
    layers: dict[str, int] = field(default_factory=dict)
    """Token slots captured, by layer."""

    @property
    def recorded_tokens(self) -> int:
        return self.stored_tokens + self.shared_tokens + self.unsampled_tokens

    @property
    def shortfall(self) -> int:
        """Expected tokens that are missing in some layer; 0 when the trace is complete."""
        missing = max((self.computed_tokens - n for n in self.layers.values()), default=0)
        too_few = self.expected_tokens - self.recorded_tokens
        return max(too_few, missing, self.unmatched_tokens, self.lost_tokens)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Rebuild from what `to_json` gave, perhaps with more beside."""
        return cls(**{field.name: value[field.name] for field in fields(cls)})

    def __add__(self, other: Completeness) -> Completeness:
        """The books of two recordings of different tokens together."""
        layers = dict(self.layers)
        for layer, tokens in other.layers.items():
            layers[layer] = layers.get(layer, 0) + tokens
        numbers = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "layers"
        }
        return Completeness(**numbers, layers=layers)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "recorded_tokens": self.recorded_tokens,
            "shortfall": self.shortfall,
        }
