"""The fields of every command that asks a language model."""

from configs.base import DTYPES, MESH, UNROLL
from configs.fields import Field, group, with_defaults
from fgrlhf_jax.data.templates import TEMPLATES
from fgrlhf_jax.feedback.llm.client import PROVIDERS

_FIELDS = {
    **group(
        "Language model",
        {
            "provider": Field(
                "anthropic",
                "who is asked; openai: all servers with its protocol too",
                choices=(*PROVIDERS, "local"),
                first=True,
            ),
            "model": Field(
                "", "its name there; local: FOLDER | HUB_ID | FILE.gguf", first=True
            ),
            "base_url": Field("", "http://HOST:PORT/v1 of another server: vLLM, Ollama, …"),
            "max_new_tokens": Field(
                0, "tokens of a reply; a longer one is cut", at_least=1, first=True
            ),
            "temperature": Field(0.0, "of sampling; 0: the likeliest reply", at_least=0),
            "dry_run": Field(
                False,
                "or --dry-run: show three prompts and an estimate of tokens and cost; ask nothing",
                first=True,
            ),
            "price_input": Field(0.0, "of a million tokens read, for the estimate", at_least=0),
            "price_output": Field(0.0, "of a million tokens written", at_least=0),
            "cache": Field(
                "", 'FILE of replies, so that none is asked for twice; "": beside output'
            ),
            "timeout": Field(60.0, "seconds until a reply must be complete", at_least=1e-6),
        },
    ),
    **group(
        "Limits",
        {
            "limits.concurrency": Field(8, "requests under way at once", at_least=1),
            "limits.requests_per_minute": Field(0.0, "0: no limit", at_least=0),
            "limits.retries": Field(6, "tries after a fault that may pass", at_least=0),
            "limits.max_refusals": Field(
                10,
                "refused requests in a row after which the run stops; 0: no limit",
                at_least=0,
            ),
            "limits.max_requests": Field(
                0, "requests of this run, after which it stops; 0: no limit", at_least=0
            ),
            "limits.max_tokens": Field(
                0, "tokens read and written by this run; 0: no limit", at_least=0
            ),
        },
    ),
    **group(
        "With provider=local",
        {
            "local.template": Field(
                "",
                'format of a prompt; "": what the model learned, or chat',
                choices=("", *TEMPLATES),
            ),
            "local.max_prompt_length": Field(
                2048, "tokens; a longer prompt is refused", at_least=1
            ),
            "local.batch_size": Field(8, "prompts at a time", at_least=1),
            "local.seed": Field(0, "of sampling at a temperature above 0", at_least=0),
            "local.mesh": MESH,
            "local.dtype": Field("float32", "dtype of the computation", choices=DTYPES),
            "local.unroll": UNROLL,
        },
    ),
}


def model_fields(*, max_new_tokens: int) -> dict[str, Field]:
    """Who is asked, and how."""
    return with_defaults(_FIELDS, {"max_new_tokens": max_new_tokens})
