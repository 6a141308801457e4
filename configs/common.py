"""The fields that commands share whether they train or not; imports no JAX."""

from configs.fields import Field

DTYPES = ("float32", "bfloat16")
EXPORT_DTYPES = (*DTYPES, "float16")
OVERLONG = ("truncate", "drop")
MODEL = "FOLDER | HUB_ID | FILE.gguf"
SOURCE = "FILE.jsonl|.json|.csv|.parquet or a dataset ORG/NAME[:CONFIG[:SPLIT]]; several by commas"

MESH = Field("1,-1,1", "devices as data,fsdp,tensor; -1 takes the rest of the devices")
DTYPE = Field("float32", "dtype of the computation", choices=DTYPES)
OVERWRITE = Field(False, "write over an output that exists")
INT8_CACHE = Field(
    False, "keys and values of the tokens so far in 8 bits: less memory, nearly exact"
)
READING = {
    "Rows": {
        "columns": Field("", "the file's names of fields: prompt=question,chosen=best,…"),
        "invalid": Field(
            "stop",
            "rows that cannot be used: stop, or drop and count",
            choices=("stop", "drop"),
        ),
    }
}
