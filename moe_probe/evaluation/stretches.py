"""Cut a prompt into prefix, question, answer cue and choice, in tokens.

Boundaries are found by comparing token lists, not characters: a prompt's tokens are what the model
ran, and a token that spans a boundary belongs to the later stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moe_probe.recording.rows import Bounds

_MAX_CUE_CHARACTERS = 60


class StretchFinder:
    """Finds stretches with a model's own tokenizer; remembers prefixes, which repeat.

    Args:
        encode: Text to token ids, as the evaluation encodes a context.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self._prefixes: dict[str, list[int]] = {}
        self._cues: dict[str, list[int]] = {}

    def bounds(
        self,
        context: str,
        context_tokens: Sequence[int],
        *,
        question: str | None,
        num_fed: int,
        truncated: int,
    ) -> Bounds:
        """Locate the stretches of one prompt.

        Args:
            context: The whole context string the evaluation built.
            context_tokens: Its tokens, before any truncation.
            question: The document's own text inside the context, if the task can say it.
            num_fed: Tokens fed to the model.
            truncated: Tokens cut from the left before that.
        """
        start = context.rfind(question) if question else -1
        prefix = 0 if start <= 0 else self._common_prefix(context[:start], context_tokens)
        cue = self._common_suffix(_cue(question or context), context_tokens)
        context_end = _clamp(len(context_tokens) - truncated, num_fed)
        prefix_end = _clamp(prefix - truncated, context_end)
        question_end = max(prefix_end, _clamp(len(context_tokens) - cue - truncated, context_end))
        return Bounds(prefix_end, question_end, context_end, num_fed)

    def _common_prefix(self, prefix: str, tokens: Sequence[int]) -> int:
        if prefix not in self._prefixes:
            self._prefixes[prefix] = self._encode(prefix)
        return _common(self._prefixes[prefix], tokens)

    def _common_suffix(self, cue: str, tokens: Sequence[int]) -> int:
        if not cue:
            return 0
        if cue not in self._cues:
            # Behind a line of its own, as it stands in the prompt: some tokenizers encode the
            # start of a text differently.
            before = self._encode("x\n")
            self._cues[cue] = self._encode("x\n" + cue)[len(before) :][::-1]
        return _common(self._cues[cue], tokens[::-1])


def _cue(text: str) -> str:
    """Return the last line if it only asks for the answer, such as "Answer:"."""
    lines = text.rstrip().rsplit("\n", 1)
    last = lines[-1]
    is_cue = len(lines) == 2 and last.endswith(":") and len(last) <= _MAX_CUE_CHARACTERS
    return last if is_cue else ""


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _clamp(value: int, high: int) -> int:
    return max(0, min(value, high))
