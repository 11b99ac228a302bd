"""What the plugin records is what transformers decides, for every architecture of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vllm.engines import generate
from tests.vllm.recorded import assert_as_reference, recorded_engine, sequences_of
from tests.vllm.reference import Reference
from tests.vllm.zoo import ZOO, prompts_of


@pytest.mark.parametrize("name", ZOO)
def test_recorded_rows_are_the_reference(
    name: str,
    checkpoint: Callable[[str], Path],
    reference: Callable[[str], Reference],
    tmp_path: Path,
) -> None:
    entry, prompts = ZOO[name], prompts_of(ZOO[name])
    with recorded_engine(checkpoint(name), tmp_path / "t", **entry.arguments) as llm:
        answers = generate(llm, prompts, 6)
    rows = sequences_of(tmp_path / "t")
    assert len(rows) == len(prompts)
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        assert row["num_tokens"] == len(prompt) + 5
        assert row["choice_end"] == len(prompt)
        assert_as_reference(row, [*prompt, *answer["tokens"][:-1]], reference(name))
