"""Chat completions of an OpenAI-compatible endpoint: retried, several at a time, kept on disk.

The package `openai` sends the requests (`pip install "cotjax[endpoint]"`): it waits and tries again
after a refused connection, a timeout, a rate limit or a server's error. Each answer is a file of
the cache under a hash of its request, so an interrupted evaluation asks nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cotjax.errors import DataError, UsageError
from cotjax.runtime.files import write_atomic

# How a server says that a prompt is too long for its model.
_TOO_LONG = ("context length", "context_length", "maximum context", "too long", "too many tokens")
# A prefilled response, and how only a model that goes on with it would go on.
_PROBE = "Copy this line: <action>count the 7 red boxes</action>"
_PROBE_BEGUN, _PROBE_REST = "<action>count the 7 r", "ed boxes"
_BUSY = (429, 502, 503, 504)  # a limit on requests; a server that starts, or has too much to do
_LATER = "gives no answer; the same command goes on when it does"
# Fields that make servers continue a final assistant message: vLLM's and SGLang's; Mistral's.
_CONTINUE: tuple[Mapping[str, Any], ...] = (
    {"add_generation_prompt": False, "continue_final_message": True},
    {},
)


@dataclass(frozen=True)
class Answer:
    """What the endpoint answered.

    Attributes:
      text: of the message; "" where the prompt was too long.
      stopped: the model ended its response; else it ran into max_tokens.
      tokens: that the server counted in the response; None where it does not say.
      too_long: the prompt does not fit the model.
    """

    text: str
    stopped: bool
    tokens: int | None = None
    too_long: bool = False


class _RefusedError(UsageError):
    """The endpoint answers, but not this request."""


class Client:
    """Asks one model of one endpoint.

    Args:
      url: up to the version, as in "http://localhost:8000/v1".
      model: its name there.
      cache: folder for the answers.
      key_variable: environment variable with the key; one that is not set means that none is
        needed. The key is never written anywhere.
      concurrency: requests at a time.
      retries: how often a request that failed is sent again, with growing pauses.
      timeout: seconds for one request.

    Raises:
      UsageError: `openai` is not installed, or the address is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: Path,
        *,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        retries: int = 6,
        timeout: float = 300.0,
    ):
        try:
            import openai
        except ImportError:
            raise UsageError(
                'an endpoint needs the package openai: pip install "cotjax[endpoint]"'
            ) from None
        if not url.startswith(("http://", "https://")):
            raise UsageError(
                f"--endpoint {url!r} is no address; it looks like http://localhost:8000/v1"
            )
        self.url, self.model, self._cache = url.rstrip("/"), model, cache
        self._secret, self._variable = os.environ.get(key_variable, ""), key_variable
        self._errors = openai
        self._server = openai.OpenAI(
            base_url=self.url, api_key=self._secret or "none", max_retries=retries, timeout=timeout
        )
        self._concurrency = concurrency

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Return the answers to chat requests, in their order.

        Args:
          requests: the fields of each but the model's name; `messages` among them.

        Raises:
          UsageError: the endpoint refuses a request, or cannot be reached after all retries.
          DataError: its answer is none, or the cache cannot be read or written.
        """
        if not requests:
            return []
        keys = [self._key_of(request) for request in requests]
        # Equal requests (games that begin alike) are sent once.
        different = dict(zip(keys, requests, strict=True))
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="endpoint")
        try:
            found = pool.map(self._ask, different.values())
            answers = dict(zip(different, found, strict=True))
            return [answers[key] for key in keys]
        finally:
            # After an error or Ctrl-C, requests that wait are not sent.
            pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def prefill(self) -> Mapping[str, Any] | None:
        """Fields with which the endpoint continues a final assistant message; None if it does not.

        Asked once: the model is to copy a line whose beginning is prefilled. Raises as `ask` does
        where there is no endpoint, or not this model.
        """
        messages = [
            {"role": "user", "content": _PROBE},
            {"role": "assistant", "content": _PROBE_BEGUN},
        ]
        for extra in _CONTINUE:
            request = {"messages": messages, "max_tokens": 16, "temperature": 0.0, **extra}
            try:
                (answer,) = self.ask([request])
            except _RefusedError:
                continue  # it knows no such field, or allows no such message
            if answer.text.startswith(_PROBE_REST):
                return extra
        return None

    # ---- private

    def _key_of(self, request: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps(self._asked(request), sort_keys=True).encode()).hexdigest()

    def _asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"url": self.url, "model": self.model, **request}

    def _ask(self, request: Mapping[str, Any]) -> Answer:
        key = self._key_of(request)
        file = self._cache / key[:2] / f"{key}.json"
        kept = self._kept(file)
        if kept is not None:
            return kept
        answer = self._send(request)
        content = {"request": self._asked(request), "answer": asdict(answer)}
        write_atomic(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        return answer

    def _kept(self, file: Path) -> Answer | None:
        try:
            return Answer(**json.loads(file.read_text(encoding="utf-8"))["answer"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}: not a kept answer ({error}); delete it, and the endpoint is asked again"
            ) from None

    def _send(self, request: Mapping[str, Any]) -> Answer:
        usual = {"messages", "max_tokens", "temperature", "top_p", "seed"}
        fields = {name: value for name, value in request.items() if name in usual}
        extra = {name: value for name, value in request.items() if name not in usual}
        errors = self._errors
        try:
            reply = self._server.chat.completions.create(
                model=self.model, extra_body=extra or None, **fields
            )
        except errors.BadRequestError as error:
            if any(words in str(error).lower() for words in _TOO_LONG):
                return Answer("", stopped=False, tokens=0, too_long=True)
            raise _RefusedError(self._say("refuses a request", error)) from None
        except errors.AuthenticationError as error:
            advice = f"refuses the key; set {self._variable} to a valid one"
            raise UsageError(self._say(advice, error)) from None
        except errors.NotFoundError as error:
            advice = "is not there; give the address up to /v1, and a name that the server knows"
            raise UsageError(self._say(advice, error)) from None
        except errors.APIConnectionError as error:
            advice = "cannot be reached; start the server, or correct the address"
            raise UsageError(self._say(advice, error)) from None
        except errors.APIError as error:
            busy = getattr(error, "status_code", None) in _BUSY
            raise (UsageError if busy else _RefusedError)(self._say(_LATER, error)) from None
        choices = getattr(reply, "choices", None)
        if not choices or choices[0].message is None:
            raise DataError(f"{self.url}: an answer without a message; is it a chat endpoint?")
        usage = getattr(reply, "usage", None)
        return Answer(
            text=choices[0].message.content or "",
            stopped=choices[0].finish_reason != "length",
            tokens=None if usage is None else usage.completion_tokens,
        )

    def _say(self, what: str, error: Exception) -> str:
        """Return a message in one line, without the key."""
        said = " ".join(str(error).split())
        if self._secret:
            said = said.replace(self._secret, "…")
        return f"the endpoint {self.url}, model {self.model!r}, {what} ({said[:300]})"
