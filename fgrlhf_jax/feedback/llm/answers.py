"""Parses the answers of servers, whole or streamed, and replies that follow a JSON schema."""

import json
from typing import Any

END, LENGTH, REFUSAL = "end", "length", "refusal"  # why a reply stopped
STOPS = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "eos", "eos_token", "none"), END),
    **dict.fromkeys(("length", "max_tokens", "model_length"), LENGTH),
    "model_context_window_exceeded": LENGTH,
    **dict.fromkeys(("refusal", "content_filter", "safety", "recitation", "sensitive"), REFUSAL),
}
CACHED = "cache_creation_input_tokens", "cache_read_input_tokens"
TOKENS = {  # the fields that count the tokens read, and those written
    "anthropic": (("input_tokens", *CACHED), ("output_tokens",)),
    "openai": (("prompt_tokens",), ("completion_tokens",)),
}


def parse_answer(
    provider: str, content: bytes, max_tokens: int
) -> tuple[str, str, int | None, int | None]:
    """(text, why it stopped, input tokens, output tokens) of the body of an answer.

    Why it stopped is a message where the body does not follow the protocol, or the reason is
    unknown; without a reason the text ended, or was cut at ``max_tokens``. Tokens are None where
    the server does not count them.
    """
    data = None
    try:
        streamed = content.lstrip().startswith((b"data:", b"event:", b"id:", b"retry:", b":"))
        data = _join_stream(content) if streamed else json.loads(content)
        usage = data.get("usage") or {}
        if provider == "anthropic":
            text, refusal, stop = _join_parts(data["content"]), "", data["stop_reason"]
        else:
            choice = data["choices"][0]
            data["error"] = data.get("error") or choice.get("error")
            message, stop = choice["message"], choice.get("finish_reason")
            text, refusal = _join_parts(message.get("content")), message.get("refusal")
        if data.get("error"):
            raise ValueError  # beside a text, which may be half of one
        text, stop = (refusal, REFUSAL) if refusal else (text, str(stop or None).lower())
        counts = [[usage.get(name) for name in names] for names in TOKENS[provider]]
        read, written = (sum(n for n in row if type(n) is int and n > 0) or None for row in counts)
        # Half of a surrogate pair is valid JSON, and no text that could be written to a file.
        text = text.encode(errors="replace").decode()
    except (LookupError, AttributeError, RecursionError, TypeError, ValueError) as error:
        message = isinstance(data, dict) and data.get("error")
        message = message or f"{type(error).__name__}: {error}"
        return "", f"the answer does not follow {provider}'s protocol ({message})", None, None
    if stop == "none" and (written or 0) >= max_tokens:
        stop = "length"
    stop = STOPS.get(stop, f"the reply stopped for an unknown reason, {stop!r}")
    return text, stop, read, written


def one_field(name: str, **kind: Any) -> dict:
    """The JSON schema of {name: text}, which :func:`read_json` reads."""
    fields = {"type": "object", "properties": {name: {"type": "string", **kind}}}
    return {**fields, "required": [name], "additionalProperties": False}


def read_json(reply: str, field: str) -> str | None:
    """The text in a JSON object of one field; None for a reply of any other form."""
    try:
        value = json.loads(reply, object_pairs_hook=tuple)  # pairs, so that two fields are seen
    except (ValueError, RecursionError):
        return None
    match value:
        case [(name, str(text))] if name == field and isinstance(value, tuple):
            return text
    return None


def _join_parts(content: Any) -> str:
    """The text in a content: a text, nothing, or a list of parts, without thoughts."""
    parts = [content] if isinstance(content, str | dict) else content or []
    parts = [{"text": part} if isinstance(part, str) else part for part in parts]
    parts = [part for part in parts if not part.get("thought")]  # Gemini's
    return "".join(p["text"] for p in parts if p.get("type", "text") in ("text", "output_text"))


def _join_stream(content: bytes) -> dict:
    """The answer that a server streams (SSE) unasked; ValueError where its end is missing."""
    message, stop, usage = {"content": "", "refusal": ""}, None, {}
    lines = [line[5:].strip() for line in content.splitlines() if line.startswith(b"data:")]
    for event in (json.loads(line) for line in lines if line not in (b"", b"[DONE]")):
        if event.get("error"):
            return event
        # Anthropic's pieces are events of their own, OpenAI's the deltas of a choice.
        choices = [each for each in event.get("choices") or () if not each.get("index")]
        piece = choices[0] if choices else {} if event.get("choices") else event
        delta = piece.get("delta") or piece.get("content_block") or {}
        message["content"] += _join_parts(delta.get("content") or delta.get("text"))
        message["refusal"] += delta.get("refusal") or ""
        stop = piece.get("finish_reason") or delta.get("stop_reason") or stop
        usage |= event.get("usage") or event.get("message", {}).get("usage") or {}
    if b"[DONE]" not in lines and not stop:
        raise ValueError("the stream ended early")
    choice = {"message": message, "finish_reason": stop}
    return {"content": message["content"], "choices": [choice], "stop_reason": stop, "usage": usage}
