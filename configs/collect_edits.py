"""A language model edits responses minimally: what ``launch.collect_edits`` needs."""

from ml_collections import ConfigDict

from configs import asking


def get_config():
    config = ConfigDict()
    # FILE[,FILE…] or dataset ids: responses (instruction, input, output), outputs for alpaca_eval,
    # preferences, or edits, whose originals are edited again; "" are some of the embedded world
    config.input = ""
    config.output = (
        ""  # FILE.jsonl of edits; beside it FILE.rejected.jsonl: what is none, and why
    )
    config.side = "worse"  # of a preference, which response is edited: worse | better
    config.limit = 0  # rows; 0 takes all
    config.max_change_ratio = 0.5  # of the words; an edit beyond it is set aside; 1 keeps all
    # FILE of jinja2 with {{ response }}, {{ instruction }}, {{ input }}
    config.template_file = ""
    asking.add_model(config, max_new_tokens=1024)
    config.lock()
    return config
