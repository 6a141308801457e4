"""Which of two responses is better, as data: what ``launch.collect_preferences`` needs."""

from ml_collections import ConfigDict

from configs.judging import add_judge


def get_config():
    config = ConfigDict()
    # FILE of pairs (output_1, output_2) or of several responses a prompt (launch.generate with
    # samples=2); "" are pairs of the embedded world
    config.input = ""
    config.output = ""  # FILE.jsonl of preferences; FILE.annotations.json has every verdict
    config.label_noise = 0.0  # share of labels to flip; AlpacaFarm's simulated annotators: 0.25
    config.draws = "drop"  # drop | random
    add_judge(config)
    config.lock()
    return config
