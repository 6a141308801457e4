"""The described fields of all commands: what is refused, what ``--help`` and the page say."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from configs import rm
from configs.fields import Field, check_values, close_groups
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.run_dir import RENAMED_FIELDS, flatten
from launch.__main__ import list_commands
from launch.shared import cli, config_files, explain

MODULES = [importlib.import_module(f"launch.{name}") for name in list_commands()]
SPECS = {module.__name__: (module.CONFIG, *getattr(module, "OTHERS", ())) for module in MODULES}
FIELDS = {
    spec.partition(":")[0]: close_groups(config_files.load(spec), config_files.fields_of(spec))
    for specs in SPECS.values()
    for spec in specs
}


def fields_of(command: str) -> dict[str, Field]:
    return FIELDS[SPECS[command][0].partition(":")[0]]


def refused(command: str, *arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        config_files.parse([command, *arguments], *SPECS[command])
    return str(caught.value)


def bad_values(field: Field) -> list[tuple[str, str]]:
    """Values that a field must refuse, and what is wrong with each."""
    cases = []
    if isinstance(field.default, bool):
        cases.append(("maybe", "give True or False"))
    elif isinstance(field.default, int):
        cases += [("abc", "give a whole number"), ("1.5", "give a whole number")]
        cases.append(("3000000000", "must be below 2147483648"))
    elif isinstance(field.default, float):
        cases += [("fast", "give a number"), ("nan", "must be finite"), ("1e400", "must be f")]
    if field.choices:
        cases.append(("no such choice", "is not one of "))
    if field.at_least is not None:
        cases.append((f"{field.at_least - 1:g}", f"must be at least {field.at_least:g}"))
    if field.at_most is not None:
        cases.append((f"{field.at_most + 1:g}", f"must be at most {field.at_most:g}"))
    return cases


def test_every_command_has_described_fields():
    assert len(SPECS) == 17
    for fields in FIELDS.values():
        for name, field in fields.items():
            assert field.help, name
            assert field.choices or isinstance(field.default, str) or bad_values(field), name


def test_bad_values_are_refused():
    """Of a field of every kind, with the last command that has one."""
    items = {}
    for command in SPECS:
        for name, field in fields_of(command).items():
            kind = type(field.default), field.choices, field.at_least, field.at_most
            items[repr(kind)] = command, name, field
    for command, name, field in items.values():
        for value, fault in bad_values(field):
            message = refused(command, f"--config.{name}={value}")
            assert re.match(rf"(--config\.)?{name}=[^:]+: ", message)
            assert fault in message, (name, value, message)
            assert "\n" not in message


@pytest.mark.parametrize("command", ["launch.sft", "launch.train_rm", "launch.ppo"])
def test_former_names_are_refused_with_the_present_ones(command):
    fields = fields_of(command)
    renamed = {old: new for old, new in RENAMED_FIELDS.items() if old not in fields}
    for old, new in renamed.items():
        if new in fields:
            assert refused(command, f"--config.{old}=1") == f"--config.{old}: is now {new}"
            assert refused(command, f"--{old}=1").endswith(f"write --config.{new}=1")
    assert len(renamed.keys() & {"keep", "select"}) == 2
    assert ("lam" in renamed and "batch_size" in renamed) == (command == "launch.ppo")


@pytest.mark.parametrize("command", SPECS)
def test_the_config_of_another_command_is_refused(command):
    files = [spec.partition(":")[0] for spec in SPECS[command]]
    for other in FIELDS.keys() - set(files):
        assert refused(command, f"--config={other}") == (
            f"--config={other}: is a config of another command; give {' or '.join(files)}, or "
            "your own file that builds on it"
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steps=3"], "steps=3: is not a flag; write --config.steps=3"),
        (["--learning_rate=1"], "is not a flag; did you mean --config.optimizer.learning_rate?"),
        (["--confg=configs/rm.py"], "--confg=configs/rm.py: is not a flag; did you mean --config?"),
        (["--config.step=1"], "--config.step: there is no such field; did you mean steps?"),
        (["--qqq"], "--qqq: is not a flag; write --config.FIELD=VALUE; --help shows the fields"),
        (["--config.model.remat", "true"], "true: is not a flag; write --config.FIELD=VALUE"),
        (["--noconfig.model.remat=3"], "--noconfig.model.remat=3 does not take an argument"),
        (["configs/rm.py:cad"], "is not a flag; write --config=configs/rm.py:cad"),
        (["--config=configs/score.py:x"], "score.py:x: takes no argument; write --config=configs/"),
        (["--config.qqq=1"], "--config.qqq: there is no such field; --help=all shows all "),
        (["--config.data=1"], "--config.data: is a group of fields: data.alignment, "),
        (["--config.learning_rate=1"], "did you mean optimizer.learning_rate?"),
        (["--config"], "there is no such file; give FILE.py[:ARGUMENT]"),
        (["--config=configs/none.py"], "--config=configs/none.py: there is no such file"),
        (["--config=configs/fields.py"], "configs/fields.py: cannot be used (KeyError"),
        (["--config=configs/rm.py:tinny"], "rm.py:tinny: model 'tinny' is not one of tiny, cad"),
        (["--config=configs/ppo.py:tiny,x"], "ppo.py:tiny,x: level 'x' is not one of token, s"),
    ],
)
def test_flags_that_are_refused(arguments, message):
    assert message in refused("launch.train_rm", *arguments)


# --- a config file of the user's ----------------------------------------------------------------

OWN = {
    "config = rm.get_config('cad')": "",
    "config = ConfigDict(rm.get_config().to_dict() | {'mine': (1, 2)})": "",
    "config = rm.get_config(); config.max_to_kep = 2": (
        "max_to_kep: there is no such field; did you mean max_to_keep?"
    ),
    "config = rm.get_config(); config.keep = 2": "own.py:argument: keep: is now max_to_keep",
    "config = rm.get_config().to_dict(); config['keep'] = config.pop('max_to_keep'); "
    "config = ConfigDict(config)": "keep is now max_to_keep; build on configs/rm.py",
    "config = sft.get_config()": "lacks the field loss; build on configs/rm.py",
    "config = 3": "cannot be used (AttributeError: ",
    "raise SystemExit(0)": "cannot be used (SystemExit: 0)",
    "config = ConfigDict(rm.get_config().to_dict() | {'steps': '3'})": (
        "steps='3': must be a whole number"
    ),
}


@pytest.mark.parametrize(("statements", "fault"), OWN.items())
def test_a_config_of_ones_own(tmp_path, statements, fault):
    own = tmp_path / "own.py"
    own.write_text(
        "from ml_collections import ConfigDict\n"
        "from configs import rm, sft\n\n"
        f"def get_config(argument=''):\n    {statements}\n    return config\n"
    )
    arguments = [f"--config={own}:argument", "--config.seed=9"]
    if fault:
        assert fault in refused("launch.train_rm", *arguments)
    else:
        assert config_files.parse(["", *arguments], "configs/rm.py").seed == 9


def test_values_without_a_flag():
    """What an own config may hold: True is no number, a whole number is one."""
    fields = {"steps": Field(0, ""), "rate": Field(0.1, ""), "scan": Field(True, "")}
    check_values({"steps": 1, "rate": 1, "scan": False}, fields)
    for values in ({"steps": 1.0}, {"rate": "1"}, {"rate": True}, {"scan": 1}):
        with pytest.raises(InputError, match="must be"):
            check_values({"steps": 1, "rate": 1, "scan": False} | values, fields)


# --- explanations -------------------------------------------------------------------------------


def help_of(monkeypatch, capsys, module, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    monkeypatch.setenv("COLUMNS", "100")
    default, *others = SPECS[module.__name__]
    cli.command(None, default, module.__doc__, *others)
    return capsys.readouterr().out


@pytest.mark.parametrize("module", MODULES)
def test_help(monkeypatch, capsys, module):
    """One screen of what is changed first; all fields, explained, with --help=all."""
    few = help_of(monkeypatch, capsys, module, "--help")
    everything = help_of(monkeypatch, capsys, module, "--help=all")
    assert few == help_of(monkeypatch, capsys, module, "-h")
    values = flatten(config_files.load(module.CONFIG).to_dict())
    for name, field in fields_of(module.__name__).items():
        assert f"\n    {name}={values[name]!r}" in everything
        assert (f"\n    {name}=" in few) == field.first
        assert field.help.split()[-1] in everything
    assert few.startswith(inspect.cleandoc(module.__doc__).splitlines()[0])
    if "MODEL" in module.__doc__.split("\n\n")[1]:
        variants = importlib.import_module(f"configs.{Path(module.CONFIG).stem}").VARIANTS
        sentence = few.split("MODEL is ")[1].splitlines()[0]
        assert re.findall(r"\w{3,}", sentence) == [*variants]
    assert max(map(len, few.splitlines())) <= 100
    assert len(few.splitlines()) <= 45
    assert few.splitlines()[-1].startswith("--help=all explains the other ")


def test_help_is_about_the_chosen_config(monkeypatch, capsys, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from ml_collections import ConfigDict\n"
        "from configs import rm\n\n"
        "def get_config():\n    return ConfigDict(rm.get_config().to_dict() | {'mine': 7})\n"
    )
    (train_rm,) = [module for module in MODULES if module.__name__ == "launch.train_rm"]
    arguments = ["--help", f"--config={own}", "--config.loss=sequence", "--config.seed=4"]
    text = help_of(monkeypatch, capsys, train_rm, *arguments)
    for assignment in ("loss='sequence'", "seed=4", "mine=7"):
        assert f"\n    {assignment}" in text


def test_the_page_is_fresh():
    path = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert path.read_text() == explain.page(), (
        "run: python -m launch.shared.explain > docs/configuration.md"
    )


def test_variants_pass_their_own_checks():
    for file, fields in FIELDS.items():
        config = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for variant in getattr(config, "VARIANTS", [""]):
            values = flatten(config_files.load(f"{file}:{variant}".rstrip(":")).to_dict())
            assert values.keys() == fields.keys()
            check_values(values, fields)
    names = {"tiny", "cad", "smollm2", "llama_7b", "llama_7b_lora", "llama3_2_1b"}
    assert set(rm.VARIANTS) == names


def test_members_of_an_open_group():
    """New ones by flag or in a config file, with the defaults of what is not given."""
    arguments = ["--config.arms.mine.learner=dpo", "--config.rounds.next.policy=mine"]
    config, fields = config_files.parse_described(["", *arguments], "configs/pipeline.py:tiny")
    assert (config.arms.mine.learner, config.arms.mine.start) == ("dpo", "sft")
    assert config.rounds.next.policy == "mine"
    assert "arms.mine.data" in fields
    for name in ("arms.*.learner", "arms.mine", "arms", "arms.mine.a.b", "arms.mine.learnr"):
        assert refused("launch.pipeline", f"--config.{name}=sft").startswith(f"--config.{name}: ")
