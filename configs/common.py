"""The fields that commands share whether they train or not; imports no JAX."""

from configs.fields import Field

DTYPES = ("float32", "bfloat16")
EXPORT_DTYPES = (*DTYPES, "float16")
OVERLONG = ("truncate", "drop")
MODEL = "FOLDER | HUB_ID | FILE.gguf"
SOURCE = "FILE.jsonl|.json|.csv|.parquet or a dataset ORG/NAME[:CONFIG[:SPLIT]]; several by commas"

REWARD_MODEL = (
    "run_dir of launch.train_rm; A,B,C: an ensemble of them; POLICY:REFERENCE[:WEIGHT]: log-ratio "
    "of two language models"
)
ENSEMBLE_PENALTY = Field(
    1.0, "standard deviations taken from the mean reward of an ensemble; 0: the mean", at_least=0
)

MESH = Field("1,-1,1", "devices as data,fsdp,tensor; -1 takes the rest of the devices")
DTYPE = Field("float32", "dtype of the computation", choices=DTYPES)
OVERWRITE = Field(False, "write over an output that exists")
INT8_CACHE = Field(False, "keys and values of tokens so far in 8 bits: less memory, nearly exact")
READING = {
    "Rows": {
        "columns": Field("", "the file's names of fields: prompt=question,chosen=best,…"),
        "invalid": Field(
            "stop", "rows that cannot be used: stop, or drop and count", choices=("stop", "drop")
        ),
    }
}
