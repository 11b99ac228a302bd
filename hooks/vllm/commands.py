"""What a worker can be told, from the process that owns the engine or over HTTP.

begin    open the trace of an evaluation, or say why that is not possible
start    record requests that the engine schedules for the first time from now on
stop     record none of those that come from now on; the ones in flight are recorded to the end
flush    make everything that ended readable
status   counts
end      requests of an evaluation that ended, with their lengths
answer   what was answered to requests of an evaluation
known    requests that an interrupted evaluation has already
close    end the trace
evaluation  results of an evaluation that used this engine as a server
"""

from __future__ import annotations

import logging
from typing import Any

from moe_probe.errors import CaptureError, MoeProbeError
from moe_probe.hooks.vllm.batch import NewRequest
from moe_probe.hooks.vllm.facts import run_facts
from moe_probe.hooks.vllm.parallel import Place
from moe_probe.hooks.vllm.payloads import read_answers, read_evaluation
from moe_probe.hooks.vllm.scheduler import unsent_lengths
from moe_probe.hooks.vllm.session import Session, Step
from moe_probe.hooks.vllm.settings import Settings, trace_path
from moe_probe.hooks.vllm.traces import open_session, write_refusal
from moe_probe.recording.tags import external_id
from moe_probe.trace import LayerSpec

_log = logging.getLogger("vllm.moe_probe")


class Commands:
    """The recording of one worker, and what it is told.

    Args:
        config: The engine's VllmConfig.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._reason: str | None = None
        self._settings: Settings | None = None
        self._attached: tuple[Place, list[LayerSpec]] | None = None
        self._open_session: Session | None = None
        self._is_on = False
        self.open_requests: set[str] = set()
        """Engine ids of the requests that are being recorded."""

    @property
    def is_open(self) -> bool:
        """Whether a trace is open, so that steps have to be watched."""
        return self._open_session is not None

    def configure(self, settings: Settings) -> None:
        """Note what the environment asks for."""
        self._settings = settings

    def attach(self, place: Place, layers: list[LayerSpec]) -> None:
        """Note that the model can be recorded; live traffic is, from now on."""
        self._attached = (place, layers)
        if self._settings is not None and not self._settings.is_evaluation:
            self._open(run_facts(self._config))

    def refuse(self, reason: str) -> None:
        """Note that it cannot, say so once, and leave the reason where the trace would be."""
        self._reason = reason
        _log.error("moe-probe records nothing: %s", reason)
        if self._settings is None or not self._settings.is_evaluation:
            write_refusal(trace_path(), reason, run_facts(self._config))

    def fail(self, reason: str) -> None:
        """End the recording after a failure; never raises."""
        self._reason = self._reason or reason
        try:
            self._close("failed", {"reason": reason})
        except Exception:
            _log.exception("moe-probe could not close its trace; opening it recovers the rest.")

    def note_new(self, requests: list[NewRequest]) -> list[NewRequest]:
        """Say which of the requests that are scheduled for the first time are recorded."""
        if not self._is_on:
            return []
        # One runner is told of a preempted request again as if it were new.
        new = [each for each in requests if each.request_id not in self.open_requests]
        self.open_requests.update(each.request_id for each in new)
        return new

    def note_ended(self, lengths: dict[str, int | None]) -> dict[str, int | None]:
        """Say which of the requests that ended were recorded."""
        if self._settings is None or self._settings.is_evaluation:
            # An evaluation knows better where an answer ended: `end` says it.
            return {}
        ended = {name: n for name, n in lengths.items() if name in self.open_requests}
        self.open_requests.difference_update(ended)
        return ended

    def step(self, step: Step) -> None:
        """Hand over a forward pass."""
        self._session.step(step)

    @property
    def _session(self) -> Session:
        if self._open_session is None:
            raise CaptureError(self._reason or "This worker records nothing.")
        return self._open_session

    def call(self, command: str, payload: Any = None) -> dict[str, Any] | None:
        """Obey a command; what goes wrong is in the answer under `error`.

        Workers that do not write answer None.
        """
        if self._attached is None and self._reason is None:
            return None
        try:
            return self._obey(command, payload)
        except MoeProbeError as error:
            return {"error": str(error), "exit_code": error.exit_code}
        except Exception as error:
            _log.exception("moe-probe could not do what it was told: %s", command)
            return {"error": f"{type(error).__name__}: {error}", "exit_code": 1}

    def _obey(self, command: str, payload: Any) -> dict[str, Any]:
        if command == "begin":
            return self._begin(payload)
        if command == "status" and self._open_session is None:
            return {"is_recording": False, "error": self._reason}
        if command == "close":
            correct = {(task, doc): value for task, doc, value in payload.pop("correct", ())}
            return self._close(**payload, correct=correct)
        session = self._session
        self._end_unsent(session)
        match command:
            case "start" | "stop":
                self._is_on = command == "start"
            case "flush":
                session.flush()
            case "status":
                pass
            case "end":
                session.end(self._of_evaluation(payload))
            case "answer":
                session.answer(read_answers(payload))
            case "evaluation":
                session.note_evaluation(*read_evaluation(payload))
            case "known":
                session.note_known(payload)
            case _:
                raise CaptureError(f"No command is called {command!r:.40}.")
        run = payload.get("run", "") if isinstance(payload, dict) else ""
        return {"is_recording": self._is_on, **session.status(str(run))}

    def _end_unsent(self, session: Session) -> None:
        ended = self.note_ended(dict(unsent_lengths(sorted(self.open_requests))))
        if ended:
            session.end(ended.items())

    def _of_evaluation(self, lengths: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Take ended requests out of the open ones; the evaluation knows them by other ids."""
        names = {external_id(name): name for name in self.open_requests}
        ended = [(names[name], length) for name, length in lengths if name in names]
        self.open_requests.difference_update(name for name, _ in ended)
        return ended

    def _begin(self, payload: dict[str, Any]) -> dict[str, Any]:
        facts = {**run_facts(self._config), **payload.pop("run")}
        if self._reason is not None or self._attached is None:
            reason = self._reason or "This worker records nothing."
            write_refusal(trace_path(), reason, facts, force=bool(payload.get("force")))
            raise CaptureError(reason)
        self._open(facts, **payload)
        return {"layers": [spec.to_json() for spec in self._attached[1]]}

    def _open(self, facts: dict[str, Any], **options: Any) -> None:
        assert self._attached is not None
        assert self._settings is not None
        place, layers = self._attached
        try:
            self._open_session = open_session(self._settings, place, layers, facts, **options)
        except MoeProbeError as error:
            if self._settings.is_evaluation:
                raise
            self.refuse(str(error))
            return
        self._is_on = True
        _log.info("moe-probe records into %s", self._settings.path)

    def _close(self, status: str | None, facts: dict[str, Any], **outcome: Any) -> dict[str, Any]:
        session, self._open_session, self._is_on = self._open_session, None, False
        if session is None:
            return {"error": self._reason}
        self._end_unsent(session)
        self.open_requests.clear()
        written = session.close(status, facts, **outcome)
        if "reason" in written:
            _log.error("moe-probe's trace is not whole: %s", written["reason"])
        return written

    def close_quietly(self) -> None:
        """End the trace with the engine; what goes wrong is logged."""
        try:
            if self._open_session is not None and self._settings is not None:
                # An evaluation that ends by itself says so.
                self._close("interrupted" if self._settings.is_evaluation else None, {})
        except Exception:
            _log.exception("moe-probe could not close its trace; opening it recovers the rest.")
