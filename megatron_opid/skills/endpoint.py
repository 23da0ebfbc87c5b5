"""Where the analyzer model is served: read from the environment and tried out before anything heavy starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

from megatron_opid.config import ConfigError


@dataclass(frozen=True)
class Endpoint:
    """Where the analyzer model is served. The key is kept out of `repr`."""

    base_url: str
    model: str
    api_key: str = field(repr=False)
    num_retries: int = 5
    retry_delay_s: float = 1.0

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> Endpoint:
        """Read OPENAI_API_KEY, OPENAI_MODEL, OPENAI_BASE_URL (default: OpenAI's own), OPENAI_API_RETRIES and
        OPENAI_API_RETRY_DELAY (seconds).

        Raises:
            ConfigError: names every variable that is unset or wrong, and what to set.
        """
        faults = [
            f"{name} is not set; set it to {meaning}"
            for name, meaning in (
                ("OPENAI_API_KEY", "the endpoint's key (any text if it asks for none)"),
                ("OPENAI_MODEL", "the name of the model that the endpoint serves"),
            )
            if not environ.get(name)
        ]
        base_url = environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        faults += _url_faults(base_url)
        num_retries = _number(environ, "OPENAI_API_RETRIES", 5, int, faults)
        retry_delay_s = _number(environ, "OPENAI_API_RETRY_DELAY", 1.0, float, faults)
        if faults:
            raise ConfigError([f"skills.analyzer=openai: {fault}" for fault in faults])
        return Endpoint(base_url, environ["OPENAI_MODEL"], environ["OPENAI_API_KEY"], num_retries, retry_delay_s)


def check_endpoint(endpoint: Endpoint, timeout_s: float = 10.0) -> None:
    """Ask the endpoint for its models, once, before anything heavy starts.

    Raises:
        ConfigError: it cannot be reached, is no such endpoint, refuses the key, or does not list the model.
    """
    url = endpoint.base_url
    try:
        with openai.OpenAI(api_key=endpoint.api_key, base_url=url, max_retries=0, timeout=timeout_s) as client:
            served = _served_models(client, endpoint.model)
    except openai.APIConnectionError as error:
        reason = type(error).__name__
        raise _fault(f"cannot be reached at {url} ({reason}); start it or set OPENAI_BASE_URL") from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        # The answer may repeat the key, so it is not shown.
        raise _fault(f"refused the key at {url} (HTTP {error.status_code}); set OPENAI_API_KEY") from None
    except openai.APIStatusError as error:
        status = error.status_code
        raise _fault(f"answered HTTP {status} at {url}; set OPENAI_BASE_URL (it usually ends in /v1)") from None
    except (AttributeError, TypeError, ValueError) as error:  # the client does not validate what it is sent
        raise _fault(f"answered no JSON of the API at {url}; set OPENAI_BASE_URL (it usually ends in /v1)") from error
    if served and endpoint.model not in served:
        raise _fault(f"does not serve OPENAI_MODEL={endpoint.model!r} at {url}; it has {', '.join(served[:8])}")


def _served_models(client: openai.OpenAI, model: str) -> list[str]:
    """The model names that the endpoint lists; empty if it lists none but answers chats, as some proxies do."""
    try:
        return [listed.id for listed in client.models.list()]
    except openai.NotFoundError:
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Say OK."}])
        if not isinstance(answer, ChatCompletion):  # a web page comes back as text
            raise ValueError("the answer is no chat completion") from None
        return []


def _fault(what: str) -> ConfigError:
    return ConfigError([f"skills.analyzer=openai: the endpoint {what}"])


def _url_faults(base_url: str) -> list[str]:
    parts = urlsplit(base_url)
    if "@" in parts.netloc:
        return ["OPENAI_BASE_URL holds credentials; put the key into OPENAI_API_KEY"]
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return [f"OPENAI_BASE_URL={base_url!r} is no HTTP address; set it to something like http://host:8000/v1"]
    return []


def _number(environ: Mapping[str, str], name: str, default: Any, kind: type, faults: list[str]) -> Any:
    text = environ.get(name)
    try:
        value = kind(text) if text else default
    except ValueError:
        value = -1
    if not 0 <= value < 1e6:
        faults.append(f"{name}={text!r} is wrong; set a number from 0 up ({kind.__name__})")
    return value
