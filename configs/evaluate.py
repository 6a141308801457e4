"""One or two models against a reference: what ``launch.evaluate`` needs."""

from configs import judging
from configs.fields import Field, group, make_config

FIELDS = {
    **group(
        "Files",
        {
            "outputs": Field(
                "",
                "FILE[,FILE] of one or two models' responses; "
                '"" and no other file: pairs of the embedded world',
                first=True,
            ),
            "reference": Field(
                "", "FILE of the responses that they are compared with", first=True
            ),
            "annotations": Field(
                "",
                "instead: FILE[,FILE] in alpaca_eval's format, judged already",
                first=True,
            ),
            "output": Field(
                "",
                "FILE.json of figures; FILE.annotations.json beside it has every verdict",
                first=True,
            ),
            "common": Field(
                False, "compare the prompts that all have, in place of refusing the others"
            ),
        },
    ),
    **judging.FIELDS,
}


def get_config():
    return make_config(FIELDS)
