"""Fields shared by training and other commands; imports no JAX."""

from configs.fields import Field
from fgrlhf_jax.data.alignment import METHODS
from fgrlhf_jax.data.templates import TEMPLATES

DTYPES = ("float32", "bfloat16")
EXPORT_DTYPES = (*DTYPES, "float16")
OVERLONG = ("truncate", "drop")
MODEL = "FOLDER | HUB_ID | FILE.gguf"
SOURCE = (
    "FILE.jsonl|.json|.csv|.parquet or a dataset ORG/NAME[:CONFIG[:SPLIT]]; separate several by "
    "commas"
)

REWARD_MODEL = (
    "run_dir of launch.train_rm; A,B,C: an ensemble; POLICY:REFERENCE[:WEIGHT]: log-ratio of two "
    "language models"
)
ENSEMBLE_PENALTY = Field(
    1.0, "standard deviations subtracted from the mean reward of an ensemble", at_least=0
)

MESH = Field("1,-1,1", "number of devices as data,fsdp,tensor; -1: all remaining devices")
DTYPE = Field("float32", "dtype of the computation", choices=DTYPES)
TEMPLATE = Field(
    "",
    'prompt template; "": the one that an export of this project was trained with, else chat if '
    "the tokenizer has a chat template, else alpaca",
    choices=("", *TEMPLATES),
)
ALIGNMENT = Field("levenshtein", "algorithm that finds changed tokens", choices=METHODS)
OVERWRITE = Field(False, "overwrite an existing output")
INT8_CACHE = Field(False, "8-bit key/value cache: less memory, nearly exact")
READING = {
    "Rows": {
        "columns": Field("", "field names in the file: prompt=question,chosen=best,…"),
        "invalid": Field("stop", "invalid rows: stop, or drop and count", choices=("stop", "drop")),
    }
}
