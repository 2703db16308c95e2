"""What the server allows: limits, keys and origins. Frozen values; they know no web framework."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import PlanError

_AT_LEAST_ONE = (
    "max_body_bytes",
    "max_upload_bytes",
    "default_new_tokens",
    "max_n",
    "max_prompts",
    "max_open_requests",
    "max_stop_texts",
    "max_stop_characters",
)
_ABOVE_ZERO = ("body_s", "upload_s", "keep_alive_s", "send_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The limits of a server. The defaults suit one machine in a local network.

    Attributes:
        model_id: what clients call the model; None takes the last part of a directory's name, or the Hub id.
        api_key: the key that clients must send; None asks for none.
        origins: addresses of web pages whose scripts may use the server, such as `"https://chat.example"`;
            `"*"` allows all of them. Without any, a browser's request from another page is refused.
        hosts: names under which the server may be called; none allows all. For a server without a key these
            are the names of this machine, so that no web page reaches it under a name of its own.
        max_body_bytes: the largest body of a request.
        max_upload_bytes: the largest body with an uploaded file; the form around it takes a little too.
        body_s: seconds that a body may take to arrive.
        upload_s: seconds that an uploaded file may take to arrive.
        max_prompt_tokens: the longest prompt; None leaves it to the context.
        max_new_tokens: the longest answer; None leaves it to the context.
        default_new_tokens: the longest answer in a chat if the request does not say; it is cut to what the
            context has left. (For completions it is 16, as OpenAI has it.)
        max_n: how many answers to one prompt may be asked for.
        max_prompts: how many prompts one body may have.
        max_open_requests: how many requests may be answered or wait at once.
        max_stop_texts: how many stop texts a request may have.
        max_stop_characters: the longest stop text.
        max_top_logprobs: how many of the likeliest tokens may be reported at each place.
        keep_alive_s: seconds between two comments of a stream.
        send_s: seconds that a client may take no data before it counts as gone.
    """

    model_id: str | None = None
    api_key: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 2**20
    max_upload_bytes: int = 201 * 2**20
    body_s: float = 30.0
    upload_s: float = 600.0
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    default_new_tokens: int = 1024
    max_n: int = 16
    max_prompts: int = 64
    max_open_requests: int = 64
    max_stop_texts: int = 4
    max_stop_characters: int = 128
    max_top_logprobs: int = 20
    keep_alive_s: float = 5.0
    send_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        for name in _AT_LEAST_ONE:
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in _ABOVE_ZERO:
            self._check(name, getattr(self, name) > 0, "above 0")
        for name in ("max_prompt_tokens", "max_new_tokens"):
            value = getattr(self, name)
            self._check(name, value is None or value >= 1, "at least 1, or None")
        self._check("max_top_logprobs", self.max_top_logprobs >= 0, "at least 0")
        if self.api_key is not None and not (self.api_key and self.api_key.isascii()):
            raise PlanError("api_key must be a text of ASCII characters, and not empty")

    def _check(self, name: str, is_valid: bool, rule: str) -> None:
        if not is_valid:
            raise PlanError(f"{name} must be {rule}; got {getattr(self, name)!r}")
