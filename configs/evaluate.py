"""One or two models against a reference: what ``launch.evaluate`` needs."""

from ml_collections import ConfigDict

from configs.judging import add_judge


def get_config():
    config = ConfigDict()
    # FILE[,FILE] of one or two models' responses; with no file at all, pairs of the embedded world
    config.outputs = ""
    config.reference = ""  # FILE of the responses that they are compared with
    config.annotations = ""  # instead: FILE[,FILE] in alpaca_eval's format, judged already
    config.output = (
        ""  # FILE.json of figures; FILE.annotations.json beside it has every verdict
    )
    config.common = False  # compare the prompts that all have, in place of refusing the others
    add_judge(config)
    config.lock()
    return config
