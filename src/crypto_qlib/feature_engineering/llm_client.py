"""One question to an OpenAI-compatible server: OpenAI itself, or a local vLLM, Ollama or llama.cpp by its address.

Servers differ in how an answer is bound to a schema, so the first question probes: JSON schema, then JSON object with the
schema beside it, then plain text. Source: OpenAI API reference, chat completions, ``response_format``; llama_cpp.server answers
``json_schema`` with HTTP 500 but takes ``{"type": "json_object", "schema": ...}``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import openai

from crypto_qlib.core.errors import DoNotRetry, OutcomeUnknown, RetryLater

_SERVER_ERROR: Final = 500
_BUSY: Final = (408, 409, 429)
_LONGEST_PAUSE_S, _LONGEST_BACK_OFF_S = 60.0, 8.0
_MOST_TOKENS: Final = 10**9
"""More than any request takes: a server that counts further is not believed."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a server answered.

    Parameters
    ----------
    text : str
        The answer; empty where the model refused.
    tokens_in, tokens_out : int
        As the server counted them; -1 where it did not say.
    served_model : str
        Which model really answered.
    is_truncated : bool
        Whether the answer hit the token limit.
    """

    text: str
    tokens_in: int
    tokens_out: int
    served_model: str
    is_truncated: bool


class ChatModel(Protocol):
    """Answer one question."""

    @property
    def name(self) -> str:
        """Name the model."""
        ...

    def complete(self, system: str, user: str, schema: dict[str, Any], max_tokens: int) -> Completion:
        """Return the answer to ``user`` under the instructions ``system``, as JSON of ``schema``.

        Raises
        ------
        RetryLater
            If the server is busy or cannot be reached: nothing was billed.
        OutcomeUnknown
            If no answer came in time: it may have been billed.
        DoNotRetry
            If the server refuses the request for good.
        """
        ...


class OpenAIChatModel:
    """An OpenAI-compatible server.

    Parameters
    ----------
    base_url : str
        Address up to and including ``/v1``.
    model : str
        Name the server knows.
    api_key : str
        May be empty for local servers.
    timeout_s : float
        Limit of one request (the library's own default is ten minutes).
    retries : int
        Further tries after 408, 409, 429 and 5xx, with back-off; ``Retry-After`` is honoured. A request that ran out of time is
        not sent again: it may have been billed, and the budget has room for one.
    sleep : callable
        Waits a number of seconds.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str,
        timeout_s: float,
        retries: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = openai.OpenAI(base_url=base_url, api_key=api_key or "none", timeout=timeout_s, max_retries=0)
        self._retries = retries
        self._sleep = sleep
        self._model = model
        self._format = 0
        self._limit_name = "max_tokens"

    @property
    def name(self) -> str:
        """Return the model's name."""
        return self._model

    def close(self) -> None:
        """Release the connections."""
        self._client.close()

    def complete(self, system: str, user: str, schema: dict[str, Any], max_tokens: int) -> Completion:
        """Return the answer, see :class:`ChatModel`."""
        messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        formats = _formats(schema)
        tries_left = self._retries
        while True:
            extra: dict[str, Any] = {self._limit_name: max_tokens}
            if formats[self._format] is not None:
                extra["response_format"] = formats[self._format]
            try:
                with self._errors():
                    return self._send(messages, extra)
            except openai.APIStatusError as e:
                if tries_left > 0 and _is_passing(e.status_code):
                    self._sleep(_pause_s(e, self._retries - tries_left))
                    tries_left -= 1
                elif not self._adapt(e, len(formats)):
                    raise _sorted_error(self._model, e) from e

    def _send(self, messages: Any, extra: dict[str, Any]) -> Completion:
        raw = self._client.chat.completions.with_raw_response.create(
            model=self._model, messages=messages, temperature=0.0, **extra
        )
        return _completion(raw.text)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Sort what has no status: only a connection that never stood is sure to have cost nothing."""
        try:
            yield
        except openai.APITimeoutError as e:
            raise OutcomeUnknown(f"{self._model} did not answer in time") from e
        except openai.APIConnectionError as e:
            # By name: the HTTP library below it is not the same in every release of the client.
            if type(e.__cause__).__name__ == "ConnectError":
                hint = "check news.llm.base_url"
                raise RetryLater(f"the language model's server cannot be reached: {e.__cause__}", hint) from e
            raise OutcomeUnknown(f"the connection to {self._model} broke before the answer was whole") from e

    def _adapt(self, error: openai.APIStatusError, n_formats: int) -> bool:
        """Choose another way to ask where the server does not know this one; return whether there is one."""
        text = str(error).lower()
        if isinstance(error, openai.BadRequestError) and "max_completion_tokens" in text:
            if self._limit_name == "max_completion_tokens":
                return False
            self._limit_name = "max_completion_tokens"
            return True
        is_format = isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)
        if (is_format or error.status_code == _SERVER_ERROR) and self._format + 1 < n_formats:
            self._format += 1
            return True
        return False


def _is_passing(status: int) -> bool:
    return status in _BUSY or status >= _SERVER_ERROR


def _pause_s(error: openai.APIStatusError, n_done: int) -> float:
    """Return how long to wait before the next try: what the server says, or half a second, doubled each time."""
    try:
        told = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        told = 0.0
    return told if 0.0 < told <= _LONGEST_PAUSE_S else min(0.5 * 2.0**n_done, _LONGEST_BACK_OFF_S)


def _formats(schema: dict[str, Any]) -> tuple[dict[str, Any] | None, ...]:
    strict = {"type": "json_schema", "json_schema": {"name": "readings", "strict": True, "schema": schema}}
    return strict, {"type": "json_object", "schema": schema}, None


def _sorted_error(model: str, error: openai.APIStatusError) -> RetryLater | DoNotRetry:
    line = f"{model} answered {error.status_code}"
    if isinstance(error, openai.RateLimitError) or error.status_code >= _SERVER_ERROR:
        return RetryLater(line, retry_after_s=60.0)
    hint = "check OPENAI_API_KEY" if isinstance(error, openai.AuthenticationError) else "check news.llm"
    return DoNotRetry(line, hint, code=str(error.status_code))


def _completion(body: str) -> Completion:
    """Return what a server sent with status 200; of what is no completion the text is empty and the tokens are unknown."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    answer = _as_row(found)
    choices = answer.get("choices")
    choice = _as_row(choices[0]) if isinstance(choices, list) and choices else {}
    text = _as_row(choice.get("message")).get("content")
    usage = _as_row(answer.get("usage"))
    return Completion(
        text=text if isinstance(text, str) else "",
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
        served_model=str(answer.get("model") or ""),
        is_truncated=choice.get("finish_reason") == "length",
    )


def _as_row(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    """Return a number of tokens; -1 where it is none that could be."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= _MOST_TOKENS else -1  # type: ignore[operator,return-value]
