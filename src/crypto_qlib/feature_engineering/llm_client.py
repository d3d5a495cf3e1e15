"""One question to an OpenAI-compatible server: OpenAI itself, or a local vLLM, Ollama or llama.cpp by its address.

Servers differ in how an answer is bound to a schema, so the first question probes: JSON schema, then JSON object with the
schema beside it, then plain text. Source: OpenAI API reference, chat completions, ``response_format``; llama_cpp.server answers
``json_schema`` with HTTP 500 but takes ``{"type": "json_object", "schema": ...}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import openai

from crypto_qlib.core.errors import DoNotRetry, OutcomeUnknown, RetryLater

_SERVER_ERROR: Final = 500


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
        Further tries after 408, 409, 429 and 5xx, with back-off; ``Retry-After`` is honoured.
    """

    def __init__(self, base_url: str, model: str, api_key: str, timeout_s: float, retries: int) -> None:
        self._client = openai.OpenAI(base_url=base_url, api_key=api_key or "none", timeout=timeout_s, max_retries=retries)
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
        while True:
            extra: dict[str, Any] = {self._limit_name: max_tokens}
            if formats[self._format] is not None:
                extra["response_format"] = formats[self._format]
            try:
                answer = self._client.chat.completions.create(
                    model=self._model,
                    messages=messages,
                    temperature=0.0,
                    **extra,
                )
            except openai.APITimeoutError as e:
                raise OutcomeUnknown(f"{self._model} did not answer in time") from e
            except openai.APIConnectionError as e:
                raise RetryLater(f"the language model's server cannot be reached: {e}", "check news.llm.base_url") from e
            except openai.APIStatusError as e:
                if not self._adapt(e, len(formats)):
                    raise _sorted_error(self._model, e) from e
                continue
            return _completion(answer)

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


def _formats(schema: dict[str, Any]) -> tuple[dict[str, Any] | None, ...]:
    strict = {"type": "json_schema", "json_schema": {"name": "readings", "strict": True, "schema": schema}}
    return strict, {"type": "json_object", "schema": schema}, None


def _sorted_error(model: str, error: openai.APIStatusError) -> RetryLater | DoNotRetry:
    line = f"{model} answered {error.status_code}"
    if isinstance(error, openai.RateLimitError) or error.status_code >= _SERVER_ERROR:
        return RetryLater(line, retry_after_s=60.0)
    hint = "check OPENAI_API_KEY" if isinstance(error, openai.AuthenticationError) else "check news.llm"
    return DoNotRetry(line, hint, code=str(error.status_code))


def _completion(answer: Any) -> Completion:
    choice = answer.choices[0] if answer.choices else None
    usage = answer.usage
    return Completion(
        text=(choice.message.content or "") if choice is not None else "",
        tokens_in=int(usage.prompt_tokens) if usage is not None else -1,
        tokens_out=int(usage.completion_tokens) if usage is not None else -1,
        served_model=str(answer.model or ""),
        is_truncated=choice is not None and choice.finish_reason == "length",
    )
