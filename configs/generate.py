"""Responses to a file of prompts: what ``launch.generate`` needs."""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = (
        ""  # FOLDER | HUB_ID | FILE.gguf; "" is the embedded world's, trained if missing
    )
    config.prompts = ""  # FILE; "" are prompts of the embedded world
    config.output = ""  # FILE.json in the format of alpaca_eval; "" prints
    config.generator = ""  # the model's name in the file; "" is `model`
    config.template = ""  # alpaca | chat | plain; "" is what the model was fine-tuned with here
    config.temperature = 0.0  # 0 is greedy
    config.top_k = 0
    config.top_p = 1.0
    config.samples = 1  # responses a prompt
    config.seed = 0
    config.limit = 0  # prompts; 0 takes all
    config.max_prompt_length = 256
    config.max_new_tokens = 300
    config.overlong = "truncate"  # truncate | drop
    config.batch_size = 32
    config.unroll = True  # fastest; False needs no second copy of the weights
    config.mesh = "1,-1,1"
    config.dtype = "float32"
    config.lock()
    return config
