"""J2 of a trace: where the tokens stand that an expert is selected for more than others.

Shape suffixes: T counted rows of a part, K slots, P pairs of an expert and a token id, H places
where one was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np
import pandas as pd

from moe_probe.analysis.accumulators.counted import Counted
from moe_probe.analysis.reading.rules import Rule
from moe_probe.analysis.reading.source import Rows
from moe_probe.analysis.scan import Progress
from moe_probe.analysis.studies.scanning import (
    AnyTrace,
    facts_of,
    fill,
    half_of,
    refuse_none,
    source_of,
    stacked,
)
from moe_probe.analysis.studies.vocabulary import token_lists
from moe_probe.trace import LayerSpec

_COLUMNS = ["expert", "token_id", "context", "sequence_id", "position", "before", "after"]


def token_contexts(
    trace: AnyTrace,
    *,
    rule: Rule | str | None = None,
    most: int = 20,
    least: int = 10,
    contexts: int = 3,
    around: int = 8,
    threads: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Show the token ids that each expert is selected for more than others in their text (J2).

    The token ids are those of `token_lists`, with which `most` and `least` are shared; the trace is
    scanned twice.

    Args:
        trace: The trace, or where it lies.
        rule: Which tokens count; the trace's default rule if None.
        most: Token ids per expert.
        least: Tokens that an id must have.
        contexts: Places to show of each, all of different documents: the first ones recorded where
            the expert is selected.
        around: Tokens before, and as many after.
        threads: Threads of the scan; all processors if None.
        progress: Called with the number of layers done, and of all, of both scans.

    Returns:
        One row per place, by layer and expert, and token ids in the order of `token_lists`.
        layer, expert, token_id
        context  number of the place, from 1
        sequence_id, position  where it is
        before, after  token ids that the model read before and after it, blanks in between: decode
            them with its tokenizer. Fewer where a sequence begins or ends, or what comes before is
            stored with another sequence that shares it

    Raises:
        TraceError: the trace has no per-token rows or no token ids, or is damaged.
        ValueError: there is no such rule, or a number below 1.
    """
    refuse_none("{} contexts", contexts)
    refuse_none("contexts of {} tokens", around)
    source = source_of(trace)
    _, chosen, _ = facts_of(source, rule)
    shared = {"rule": chosen, "most": most, "least": least, "threads": threads}
    lists = token_lists(source.trace, **shared, progress=half_of(progress, 0))
    found = _Contexts(source.layers, chosen, lists, contexts, around)
    fill(source, [found], threads, half_of(progress, 1))
    return stacked(((layer, found.table(layer)) for layer in source.layers), source, rule)


class _Contexts:
    """The first places of every pair of a list, in different documents."""

    weights = lookahead = False

    def __init__(
        self,
        layers: Mapping[int, LayerSpec],
        rule: Rule,
        lists: pd.DataFrame,
        contexts: int,
        around: int,
    ) -> None:
        self.layers, self._rule, self._contexts, self._around = layers, rule, contexts, around
        self._pairs = {layer: lists[lists["layer"] == layer] for layer in layers}
        self._key_P = {layer: _keys(pairs, layers[layer]) for layer, pairs in self._pairs.items()}
        self._documents: dict[int, set[tuple[int, int]]] = {layer: set() for layer in layers}
        """Pairs, and documents they were found in."""
        self._shown_P = {n: np.zeros(len(key_P), np.int64) for n, key_P in self._key_P.items()}
        self._rows: dict[int, list[tuple[int, dict[str, object]]]] = {n: [] for n in layers}

    def add(self, rows: Rows, layer: int, kernels: ModuleType) -> None:
        counted, key_P = Counted.of(rows.pieces(self._rule)), self._key_P[layer]
        if not len(key_P) or not len(counted.row_T):
            return
        token_id_T = rows.source.token_ids(rows.part)
        experts = self.layers[layer].num_experts
        ids_TK = rows.topk_ids(layer)[counted.row_T].astype(np.int64)
        key_TK = token_id_T[counted.row_T].astype(np.int64)[:, None] * experts + ids_TK
        order_P = np.argsort(key_P)
        place_TK = np.searchsorted(key_P[order_P], key_TK).clip(max=len(key_P) - 1)
        pair_TK = order_P[place_TK]
        row_H, slot_H = np.nonzero((key_P[pair_TK] == key_TK) & (ids_TK < experts))
        hits = pd.DataFrame(
            {
                "pair": pair_TK[row_H, slot_H],
                "document": counted.cluster_T[row_H],
                "row": counted.row_T[row_H],
            }
        )
        hits = hits[self._shown_P[layer][hits["pair"]] < self._contexts]
        # Of those shown already, fewer than wanted, a document may go on in this part.
        hits = hits.drop_duplicates(["pair", "document"]).groupby("pair").head(2 * self._contexts)
        for pair, document, row in hits.itertuples(index=False):
            shown, known = self._shown_P[layer], self._documents[layer]
            if shown[pair] < self._contexts and (pair, document) not in known:
                known.add((pair, document))
                shown[pair] += 1
                facts = {"context": int(shown[pair]), **self._context(rows, row, token_id_T)}
                self._rows[layer].append((pair, facts))

    def _context(self, rows: Rows, row: int, token_id_T: np.ndarray) -> dict[str, object]:
        stretches = rows.part.stretches
        stretch = int(np.searchsorted(stretches.start_R, row, side="right")) - 1
        start, sequence = int(stretches.start_R[stretch]), int(stretches.sequence_R[stretch])
        stop = start + int(stretches.length_R[stretch])
        before_T = token_id_T[max(start, row - self._around) : row]
        after_T = token_id_T[row + 1 : min(stop, row + 1 + self._around)]
        return {
            "sequence_id": int(rows.index.sequence_id_S[sequence]),
            "position": int(stretches.position_R[stretch]) + row - start,
            "before": " ".join(map(str, before_T.tolist())),
            "after": " ".join(map(str, after_T.tolist())),
        }

    def table(self, layer: int) -> pd.DataFrame:
        """The places of one layer, in the order of its list."""
        pairs = self._pairs[layer][["expert", "token_id"]].to_dict("records")
        ordered = sorted(self._rows[layer], key=lambda found: found[0])
        rows = [{**pairs[pair], **facts} for pair, facts in ordered]
        return pd.DataFrame(rows, columns=_COLUMNS)


def _keys(pairs: pd.DataFrame, spec: LayerSpec) -> np.ndarray:
    """A number for each pair of a token id and an expert: int64 [P]."""
    token_id_P = pairs["token_id"].to_numpy(np.int64)
    return np.asarray(token_id_P * spec.num_experts + pairs["expert"].to_numpy(np.int64))
