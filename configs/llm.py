"""Fields of the commands that send requests to a language model."""

from configs.common import DTYPES, MESH, TEMPLATE
from configs.fields import Field
from fgrlhf_jax.feedback.llm.client import PROVIDERS

# Fields by group title. Each command sets the default of max_new_tokens.
MODEL_FIELDS = {
    "Language model": {
        "provider": Field(
            "anthropic",
            "API of the model; openai: every server with an OpenAI-compatible API",
            choices=(*PROVIDERS, "local"),
        ),
        "model": Field("", "the provider's name for it; local: FOLDER | HUB_ID | FILE.gguf"),
        "base_url": Field("", "http://HOST:PORT/v1 of another server: vLLM, Ollama, …"),
        "max_new_tokens": Field(0, "tokens of a reply, at most", at_least=1),
        "temperature": Field(0.0, "sampling temperature; 0: greedy", at_least=0),
        "reply_format": Field(
            "auto",
            "json_schema: the server enforces a JSON schema; text: the prompt asks for a format; "
            "auto: json_schema at the providers' default addresses, text elsewhere",
            choices=("auto", "json_schema", "text"),
        ),
        "dry_run": Field(
            False, "show prompts and an estimate of tokens and cost, send nothing; short: --dry-run"
        ),
        "price_input": Field(0.0, "price per million input tokens, for the estimate", at_least=0),
        "price_output": Field(0.0, "price per million output tokens", at_least=0),
        "cache": Field("", 'FILE that stores replies for reuse; "": next to output'),
        "timeout": Field(60.0, "seconds per request, until the reply is complete", at_least=1e-6),
    },
    "Limits": {
        "limits.concurrency": Field(8, "concurrent requests", at_least=1),
        "limits.requests_per_minute": Field(
            0.0, "evenly spaced requests per minute, retries included; 0: no limit", at_least=0
        ),
        "limits.retries": Field(6, "retries of a request after a transient error", at_least=0),
        "limits.max_refusals": Field(
            10, "stop after this many failed requests in a row; 0: no limit", at_least=0
        ),
        "limits.max_requests": Field(0, "requests of a run, retries too; 0: no limit", at_least=0),
        "limits.max_tokens": Field(0, "input and output tokens of a run; 0: no limit", at_least=0),
    },
    "With provider=local": {
        "local.template": TEMPLATE,
        "local.max_prompt_length": Field(2048, "tokens of a prompt; longer: rejected", at_least=1),
        "local.batch_size": Field(8, "prompts per batch", at_least=1),
        "local.seed": Field(0, "seed of sampling", at_least=0),
        "local.mesh": MESH,
        "local.dtype": Field("float32", "dtype of the computation", choices=DTYPES),
    },
}
