"""The fields of every command that asks a language model."""

from ml_collections import ConfigDict


def add_model(config: ConfigDict, *, max_new_tokens: int) -> None:
    """Adds them."""
    config.provider = "anthropic"  # anthropic | openai (and all that speak as it does) | local
    config.model = ""  # its name there; local: FOLDER | HUB_ID | FILE.gguf
    config.base_url = ""  # http://HOST:PORT/v1 of another server: vLLM, Ollama, …
    config.max_new_tokens = max_new_tokens  # of a reply; one that is longer is cut
    config.temperature = 0.0  # 0 is the likeliest reply
    # or --dry-run: show three prompts and what it would take; ask nothing
    config.dry_run = False
    config.price_input = 0.0  # of a million tokens, for an estimate of the cost
    config.price_output = 0.0
    config.cache = ""  # FILE of replies, so that none is asked for twice; "": beside the output
    config.timeout = 60.0  # seconds until a reply must be complete
    config.limits = ConfigDict()
    config.limits.concurrency = 8  # requests under way at once
    config.limits.requests_per_minute = 0.0  # 0 is no limit, here and below
    config.limits.retries = 6  # after faults that may pass
    config.limits.max_refusals = 10  # in a row; then the run stops, for all would be refused
    config.limits.max_requests = 0  # attempts of this run; then it stops, and may be continued
    config.limits.max_tokens = 0  # read and written, of this run
    config.local = ConfigDict()  # of provider=local
    config.local.template = ""  # chat | alpaca | plain; "" is what the model learned, or chat
    config.local.max_prompt_length = 2048  # tokens; a longer prompt is refused
    config.local.batch_size = 8
    config.local.seed = 0  # of replies at a temperature above 0
    config.local.mesh = "1,-1,1"
    config.local.dtype = "float32"
    config.local.unroll = True  # fastest; False needs no second copy of the weights
