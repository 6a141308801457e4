"""The fields of every command that sends requests to a language model."""

from configs.common import DTYPES, MESH
from configs.fields import Field
from fgrlhf_jax.data.templates import TEMPLATES
from fgrlhf_jax.feedback.llm.client import PROVIDERS

# By the title of their group; a command sets the default of max_new_tokens.
MODEL_FIELDS = {
    "Language model": {
        "provider": Field(
            "anthropic",
            "API of the model; openai: every server that speaks its protocol",
            choices=(*PROVIDERS, "local"),
        ),
        "model": Field("", "its name there; local: FOLDER | HUB_ID | FILE.gguf"),
        "base_url": Field("", "http://HOST:PORT/v1 of another server: vLLM, Ollama, …"),
        "max_new_tokens": Field(0, "tokens of a reply; a longer one is cut", at_least=1),
        "temperature": Field(0.0, "of sampling; 0: the likeliest reply", at_least=0),
        "reply_format": Field(
            "auto",
            "json_schema: the server holds replies to a form; text: the prompt asks for it; "
            "auto: json_schema at the providers' own addresses, text elsewhere",
            choices=("auto", "json_schema", "text"),
        ),
        "dry_run": Field(
            False,
            "or --dry-run: show three prompts and an estimate of tokens and cost; send nothing",
        ),
        "price_input": Field(0.0, "of a million tokens read, for the estimate", at_least=0),
        "price_output": Field(0.0, "of a million tokens written", at_least=0),
        "cache": Field("", 'FILE of replies, which are not paid for again; "": beside output'),
        "timeout": Field(60.0, "seconds until one answer must be complete", at_least=1e-6),
    },
    "Limits": {
        "limits.concurrency": Field(8, "requests in flight at once", at_least=1),
        "limits.requests_per_minute": Field(0.0, "tries, evenly spread; 0: no limit", at_least=0),
        "limits.retries": Field(6, "further tries after a fault that may pass", at_least=0),
        "limits.max_refusals": Field(
            10, "requests in a row without a reply that stop the run; 0: no limit", at_least=0
        ),
        "limits.max_requests": Field(0, "tries of this run; 0: no limit", at_least=0),
        "limits.max_tokens": Field(0, "read and written by this run; 0: no limit", at_least=0),
    },
    "With provider=local": {
        "local.template": Field(
            "", 'format of a prompt; "": as in launch.generate', choices=("", *TEMPLATES)
        ),
        "local.max_prompt_length": Field(2048, "tokens; longer ones are refused", at_least=1),
        "local.batch_size": Field(8, "prompts at a time", at_least=1),
        "local.seed": Field(0, "of sampling at a temperature above 0", at_least=0),
        "local.mesh": MESH,
        "local.dtype": Field("float32", "dtype of the computation", choices=DTYPES),
    },
}
