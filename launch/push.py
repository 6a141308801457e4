r"""Upload a model, or a file of edits, preferences or instructions, with a card to the hub.

python -m launch.push --config.path=RUN_DIR|FILE --config.repo=ORG/NAME --config.license=LICENSE \
                      [--config.private=False] [--config.made="…"]

The token is that of huggingface_hub: `hf auth login`, or HF_TOKEN. The same command resumes a push
that stopped: files that are on the hub already are not sent again.
"""

import fnmatch
import re
import statistics
from collections import Counter
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants

from fgrlhf_jax.data import records
from fgrlhf_jax.data.sources import SUFFIXES
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits.minimality import measure
from fgrlhf_jax.models import cards, checksums, hf_files, peft
from launch.shared import cli, reading

CONFIG = "configs/push.py"
ADVICE = {
    401: "the hub does not accept the token; run `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; make one with write access to that name",
    404: "there is no such user, organization or branch; check the name",
}


def main(config) -> None:
    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE is set, and a push needs the hub; unset it")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", config.repo):
        raise InputError(f"repo={config.repo!r}: is not a name on the hub; give ORG/NAME")
    is_data = config.path.endswith(SUFFIXES) and not Path(config.path).is_dir()
    card, files = read_rows(config) if is_data else read_model(config)
    card.data.license = config.license or card.data.license
    if not card.data.license:
        raise InputError(
            "license is empty; give the terms of use, --config.license=apache-2.0, cc-by-4.0, … "
            "(for a model: as its base model and data allow)"
        )
    if not huggingface_hub.get_token():
        raise InputError("no token for the hub was found; run `hf auth login`, or set HF_TOKEN")
    print(f"{config.repo}: {upload(config, 'dataset' if is_data else 'model', card, files)}")


def read_model(config) -> tuple[huggingface_hub.ModelCard, dict[str, Path]]:
    """The card and the files of an export; raises InputError if a file was changed."""
    if not Path(config.path).is_dir():
        raise InputError(f"path={config.path!r}: is not a run folder, export or file of rows")
    folder = hf_files.resolve(config.path)
    checksums.check(folder, hf_files.read_json(checksums.config_file(folder)), weights=True)
    if checksums.is_adapter(folder) and Path(base := peft.base_name(folder)).exists():
        raise InputError(
            f"path={config.path}: is an adapter of {base}, which is only on this machine; push "
            f"{base} first, and write its hub id as {checksums.BASE_FIELD} into "
            f"{folder / checksums.ADAPTER}"
        )
    if not (folder / "README.md").is_file():
        raise InputError(
            f"path={config.path}: {folder} has no README.md; give an export of this project"
        )
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    card.text = card.text.replace(f'"{cards.FOLDER}"', f'"{config.repo}"')
    return card, {name: folder / name for name in checksums.files(folder)}


def read_rows(config) -> tuple[huggingface_hub.DatasetCard, dict[str, Path]]:
    """The card of a file of rows, and the file; raises InputError for unreadable rows."""
    if not config.made.strip():
        raise InputError("made is empty; describe how the rows were collected: --config.made='…'")
    rows = reading.read_with_rows(config, config.path)
    kinds = Counter(records.kind_of(record) for record, _ in rows)
    figures = {kind: f"{count} rows" for kind, count in kinds.items()}
    edits = [record for record, _ in rows if isinstance(record, records.Edit)]
    if edits:
        ratios = [measure(edit.original, edit.edited).word_change_ratio for edit in edits]
        figures["median word change ratio"] = f"{statistics.median(ratios):.3f}"
    values: dict[str, list] = {}
    for _, row in rows:
        for name, value in row.items():
            values.setdefault(name, []).extend([] if value is None else [value])
    columns = {
        name: f"{', '.join({type(v).__name__: None for v in column})}; {len(column)} rows"
        for name, column in values.items()
    }
    file = Path(config.path)
    text = cards.dataset_card(
        config.repo, file.name, columns=columns, figures=figures, made=config.made
    )
    return huggingface_hub.DatasetCard(text), {file.name: file}


def upload(config, kind: str, card, files: dict[str, Path]) -> str:
    """Uploads the card and the files in one commit; returns the commit's URL.

    Raises InputError if the hub rejects the commit or cannot be reached, or if ``config.private``
    is set and the repository is public.
    """
    api, options = huggingface_hub.HfApi(), {"repo_id": config.repo, "repo_type": kind}
    try:
        api.create_repo(**options, private=config.private, exist_ok=True)
        if config.private and not api.repo_info(**options).private:
            raise InputError(
                f"repo={config.repo}: exists and is public; choose another name, or "
                "--config.private=False to publish"
            )
        if config.revision:
            api.create_branch(**options, branch=config.revision, exist_ok=True)
        options["revision"] = config.revision or None
        on_hub = api.list_repo_files(**options) if kind == "model" else []
        deleted = [
            name
            for name in set(on_hub) - set(files)
            if any(fnmatch.fnmatch(name, pattern) for pattern in checksums.PATTERNS)
        ]
        operations = [CommitOperationDelete(name) for name in sorted(deleted)]
        operations += [CommitOperationAdd("README.md", str(card).encode())]
        operations += [CommitOperationAdd(name, file) for name, file in files.items()]
        message = f"Upload {Path(config.path).name} with fgrlhf_jax"
        return api.create_commit(
            **options, operations=operations, commit_message=message
        ).commit_url
    except InputError:
        raise
    except Exception as error:  # from the library, the hub or the network
        raise InputError(f"repo={config.repo}: {explain(error)}") from error


def explain(error: BaseException) -> str:
    """A sentence with the remedy and the cause of an error of library, hub or network."""
    error, status = hf_files.hub_cause(error)
    advice = ADVICE.get(status, "the hub cannot be used; run the same command again to resume")
    return f"{advice} ({type(error).__name__}: {' '.join(str(error).split()):.300})"


if __name__ == "__main__":
    cli.command(main, CONFIG, __doc__)
