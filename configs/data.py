"""What ``launch.data`` shows or converts."""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    # FILE.jsonl|.json|.parquet, or ORG/NAME[:CONFIG[:SPLIT]] of a dataset on the hub or a folder of
    # that form; several by commas. "" is the embedded world.
    config.input = ""
    config.output = ""  # FILE.json: the figures; with `to` FILE.jsonl or FILE.json: the rows
    config.invalid = "stop"  # rows that cannot be read: stop | drop (and count)
    config.limit = 0  # rows of each file; 0 takes all
    config.seed = 0  # of the samples, and of the order of sides

    config.samples = 3  # rows a file shown in full
    config.tokenizer = ""  # FOLDER | HUB_ID | FILE.gguf: lengths in tokens too
    config.template = "alpaca"  # alpaca | chat | plain
    config.max_length = 512  # tokens of prompt and response
    config.max_prompt_length = 192  # tokens of a prompt of PPO

    # "" shows; edits | preferences | instructions | prompts | alpaca_farm | alpaca_eval converts
    config.to = ""
    config.side = (
        "better"  # of a pair, for to=instructions: better | worse (what is to be edited)
    )
    config.predictions = (
        False  # compare `predictions` by the labels in `preference` (qa_feedback)
    )
    config.distinct = False  # drop rows that were there before; prompts always are distinct
    config.generator = ""  # the model's name in rows for alpaca_eval that have none
    config.lock()
    return config
