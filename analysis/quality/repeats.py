"""Checks of what was run or recorded more than once: Q11, writers, Q13, prompts, Q16, the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeGuard

from moe_probe.analysis.accumulators.repeats import Repeats
from moe_probe.analysis.quality.outcome import NO_ROWS, Check, Status, pass_if, some
from moe_probe.analysis.quality.outcome import table as table_of
from moe_probe.errors import TraceError
from moe_probe.trace import Trace

_REQUEST = ("request_id", "kind", "task", "subject", "doc_id", "choices", "prompt_hash")


def separate_writers(trace: Trace) -> Check:
    """Check that ranks recorded different requests, and pipeline stages different layers.

    Tensor-parallel ranks route alike, and one of them records: if all did, every token would be
    there several times. A rank of which every request is another's too is such a one.
    """
    name = "writers recorded different things"
    requests = _requests_by_rank(trace)
    stages = table_of(trace.run, "stages")
    if len(requests) < 2 and not stages:
        return Check("Q11", name, Status.SKIP, reason="one process recorded everything")
    faults = _stage_faults(trace, stages)
    if not stages and not any(requests.values()):
        return Check("Q11", name, Status.SKIP, reason="nothing tells the ranks' requests apart")
    times = Counter(request for known in requests.values() for request in known)
    twice = {request for request, number in times.items() if number > 1}
    copies = [rank for rank, known in requests.items() if known and known <= twice]
    faults += [f"every request of rank {rank} is another rank's too" for rank in copies]
    value = f"{len(requests)} ranks, {len(twice):,} of {len(times):,} requests in several"
    if stages:
        value += f"; {len(stages)} stages"
    status = Status.NOTE if twice and not faults else pass_if(not faults)
    return Check("Q11", name, status, some(faults) if faults else value, "each request, layer once")


def _requests_by_rank(trace: Trace) -> dict[int, set[tuple[Any, ...]]]:
    """What tells the requests that each rank ran; those without any name are left out.

    A prompt alone tells no request where a rank ran it more than once, as in a benchmark that
    sends the same one again and again.
    """
    table = trace.sequences
    found: dict[int, Counter[tuple[Any, ...]]] = {}
    columns = (table[name].to_pylist() for name in ("rank", "multiplicity", *_REQUEST))
    for rank, runs, request, kind, task, subject, doc, choices, prompt in zip(
        *columns, strict=True
    ):
        known = found.setdefault(rank, Counter())
        if runs and (request or prompt or doc >= 0):
            is_named = bool(request) or doc >= 0
            known[is_named, request, kind, task, subject, doc, tuple(choices), prompt] += 1
    return {
        rank: {name for name, times in known.items() if name[0] or times == 1}
        for rank, known in found.items()
    }


def _stage_faults(trace: Trace, stages: dict[str, Any]) -> list[str]:
    if not stages:
        return []
    owners: Counter[int] = Counter()
    for number in stages:
        layers = table_of(stages, number).get("layers")
        if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
            raise TraceError(f"Stage {number} in run.json has no layers. Record again.")
        owners.update(layers)
    return [
        f"layer {layer} in {owners[layer]} stages" for layer in trace.layers if owners[layer] != 1
    ]


def repeated_prompts(repeats: Repeats | None) -> Check:
    """Tell how often a token of a prompt that was stored again chose the same experts in a layer.

    It is the noise floor of every comparison of two traces: where kernels depend on the batch, a
    model does not repeat itself.
    """
    name = "repeated prompts routed alike"
    if repeats is None:
        return Check("Q13", name, Status.SKIP, reason=NO_ROWS)
    pairs, equal = repeats.agreement()
    if not pairs:
        return Check("Q13", name, Status.SKIP, reason="no prompt's rows are stored more than once")
    total = sum(equal.values())
    worst = min(equal, key=lambda layer: equal[layer])
    value = f"{total / (pairs * len(equal)):.2%} of {pairs:,} rows in {repeats.prompts:,} prompts"
    if equal[worst] < pairs:
        value += f", {equal[worst] / pairs:.2%} in layer {worst}"
    status = Status.PASS if equal[worst] == pairs else Status.NOTE
    return Check("Q13", name, status, value, "100%, or the engine's noise")


def unchanged_scores(trace: Trace) -> Check:
    """Compare the evaluation's scores with those of a run without capture, if run.json has any.

    The same documents were scored, so scores differ only where answers do: at all it is worth
    knowing, by more than a standard error it is no noise of the engine's.
    """
    name = "scores as without capture"
    results = table_of(trace.run, "results")
    control = table_of(table_of(trace.run, "control"), "results")
    pairs = list(_scores(results, control))
    if not pairs:
        reason = "no scores without capture (control in docs/trace-format.md)"
        return Check("Q16", name, Status.SKIP, reason=reason)
    unequal = [(label, with_, without) for label, with_, without, _ in pairs if with_ != without]
    is_noise = all(abs(with_ - without) <= error for _, with_, without, error in pairs)
    status = Status.NOTE if unequal and is_noise else pass_if(not unequal)
    value = f"{len(pairs) - len(unequal):,} of {len(pairs):,} scores equal"
    if unequal:
        value += "; " + some([f"{label} {with_:g}, not {out:g}" for label, with_, out in unequal])
    return Check("Q16", name, status, value, "all, or within a standard error")


def _scores(
    results: dict[str, Any], control: dict[str, Any]
) -> Iterator[tuple[str, float, float, float]]:
    """Yield what both have: task and metric, both scores, and the standard error."""
    for task in (name for name in results if name in control):
        scores, others = table_of(results, task), table_of(control, task)
        for metric, score in scores.items():
            base, _, method = metric.partition(",")
            other = others.get(metric)
            if method and _is_number(score) and _is_number(other) and not base.endswith("_stderr"):
                error = scores.get(f"{base}_stderr,{method}")
                yield f"{task} {base}", score, other, error if _is_number(error) else 0.0


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
