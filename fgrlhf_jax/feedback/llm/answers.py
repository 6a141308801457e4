"""Parses the answers of servers, complete or streamed, and replies in a JSON schema."""

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
TOKENS = {  # fields with numbers of input tokens, and of output tokens
    "anthropic": (("input_tokens", *CACHED), ("output_tokens",)),
    "openai": (("prompt_tokens",), ("completion_tokens",)),
}


def parse_answer(
    provider: str, content: bytes, max_tokens: int
) -> tuple[str, str, int | None, int | None]:
    """Returns (text, stop reason, input tokens, output tokens) of the body of an answer.

    The stop reason is an error message if the body does not follow the protocol or gives an unknown
    reason. If the body gives none, it is "length" at ``max_tokens``, else "end". Numbers of tokens
    are None if the body lacks them.
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
            raise ValueError  # beside a text, which may be incomplete
        text, stop = (refusal, REFUSAL) if refusal else (text, str(stop or None).lower())
        counts = [[usage.get(name) for name in names] for names in TOKENS[provider]]
        read, written = (sum(n for n in row if type(n) is int and n > 0) or None for row in counts)
        # JSON may contain half of a surrogate pair, which cannot be written to a file.
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
    """Returns the JSON schema of {name: text}, which :func:`read_json` parses."""
    fields = {"type": "object", "properties": {name: {"type": "string", **kind}}}
    return {**fields, "required": [name], "additionalProperties": False}


def read_json(reply: str, field: str) -> str | None:
    """Returns the text in a JSON object with one field; None for a reply in any other form."""
    try:
        value = json.loads(reply, object_pairs_hook=tuple)  # pairs, to detect repeated fields
    except (ValueError, RecursionError):
        return None
    match value:
        case [(name, str(text))] if name == field and isinstance(value, tuple):
            return text
    return None


def _join_parts(content: Any) -> str:
    """Joins the texts in a content (a text, None, a part or a list of parts), without thoughts."""
    parts = [content] if isinstance(content, str | dict) else content or []
    parts = [{"text": part} if isinstance(part, str) else part for part in parts]
    parts = [part for part in parts if not part.get("thought")]  # Gemini's
    return "".join(p["text"] for p in parts if p.get("type", "text") in ("text", "output_text"))


def _join_stream(content: bytes) -> dict:
    """Joins an answer that a server streams (SSE); raises ValueError if its end is missing."""
    message, stop, usage = {"content": "", "refusal": ""}, None, {}
    lines = [line[5:].strip() for line in content.splitlines() if line.startswith(b"data:")]
    for event in (json.loads(line) for line in lines if line not in (b"", b"[DONE]")):
        if event.get("error"):
            return event
        # Anthropic sends pieces as events, OpenAI as deltas of a choice.
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
