"""The arms of a study (its policies), its reward models and its rounds of edits.

Each is defined in the config: ``arms.NAME``, ``reward_models.NAME`` and ``rounds.NAME``. Their
fields name what they depend on, which must form a graph without cycles:

    arm           start (another arm), reward (reward models or arms), data, {ARM} in its flags
    reward model  start (an arm), data, {ARM} in its flags
    round         policy (an arm), whose responses are edited, part
    data          rounds, or edits_K_of_N: edits on part K of N parts of the prompts
"""

import difflib
import re

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.ppo.algorithm import ALGORITHMS

PREFERENCE_LEARNERS = ("dpo", "ddpo", "salt", "figa")
LEARNERS = ("sft", *PREFERENCE_LEARNERS, *ALGORITHMS)
BASE, ORACLE = "sft", "oracle"  # the start of all arms; the embedded world's exact token rewards
DATA = ("edits", "preferences")  # feedback on responses of BASE
PARTS_PREFIX = "parts_of_"  # parts_of_3: prompts and edits of the feedback in three parts
GROUPS = {"arms": "learner", "reward_models": "loss", "rounds": "policy"}  # group: required field
_RESERVED = (BASE, *DATA, "data", "answers", "feedback", "samples", "tables")  # reserved names


def group_of(config: ConfigDict, name: str) -> str:
    """The group of ``GROUPS`` that defines a name, or ""."""
    return next((group for group in GROUPS if name in config[group]), "")


def split_names(text: str) -> list[str]:
    """The names in a field such as ``run_arms``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def select(config: ConfigDict) -> list[str]:
    """The arms in ``config.run_arms`` and all their dependencies, in topological order.

    Raises InputError for unknown names, cycles, and arms that the config's data cannot train.
    """
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = " → ".join([*path[path.index(name) :], name])
            raise InputError(f"{cycle}: each depends on the next, in a circle; break it")
        if name not in order:
            for dependency in dependencies(config, name):
                visit(dependency, (*path, name))
            order.append(name)

    for group in GROUPS:
        for name in config[group]:
            _check_name(config, group, name)
    for name in split_names(config.run_arms):
        _check_known(config, "run_arms", name, "arms")
        visit(name, ())
    return order


def selected(config: ConfigDict, group: str, order: list[str]) -> dict[str, str]:
    """Name → label of the members of one group in ``order``, a result of :func:`select`."""
    members = config[group]
    return {name: members[name].label or name for name in order if name in members}


def dependencies(config: ConfigDict, name: str) -> list[str]:
    """Names that an arm, a reward model or a round directly depends on, without the base."""
    group = group_of(config, name)
    if not group:  # parts of the prompts
        return []
    member, field = config[group][name], f"{group}.{name}"
    if group == "rounds":
        _check_known(config, f"{field}.policy", member.policy, "arms", BASE)
        needs = [member.policy, PARTS_PREFIX + split_part(f"{field}.part", member.part)[1]]
    else:
        _check_known(config, f"{field}.start", member.start, "arms", BASE)
        rewards = _check_arm(config, field, member) if group == "arms" else []
        data = _check_data(config, field, split_names(member.data))
        references = re.findall(r"\{(.*?)\}", f"{member.defaults},{member.flags}")
        for need in references:
            _check_known(config, f"{field}.flags", need, "arms", BASE)
        needs = [member.start, *rewards, *data, *references]
    return [need for need in dict.fromkeys(needs) if need not in (BASE, ORACLE, *DATA)]


def split_part(field: str, part: str) -> tuple[str, str]:
    """K and N of a value ``K_of_N``: part K of N parts of the feedback's prompts."""
    match = re.fullmatch(r"([1-9]\d*)_of_([1-9]\d*)", part)
    if not match or int(match[1]) > int(match[2]):
        raise InputError(f"{field}={part}: is no part of the prompts; give for instance 2_of_3")
    return match[1], match[2]


def part_of(data: str) -> str:
    """ "1_of_3" for "edits_1_of_3"; "" for other names."""
    return data.removeprefix("edits_") if re.fullmatch(r"edits_\d+_of_\d+", data) else ""


def reward_level(config: ConfigDict, name: str) -> str:
    """The field ``level`` of launch.ppo, "token" or "sequence", for an arm's reward model."""
    model = config.reward_models.get(split_names(config.arms[name].reward)[0])
    return "sequence" if model and model.loss == "sequence" else "token"


def _check_name(config: ConfigDict, group: str, name: str) -> None:
    """Raises InputError for a name that is reserved, used twice or misspelt."""
    field = f"{group}.{name}"
    used = (*_RESERVED, ORACLE) if group == "reward_models" else _RESERVED
    if name in used or not re.fullmatch(rf"(?!{PARTS_PREFIX})\w+", name):
        raise InputError(
            f"{field}: the name is taken or not of letters, digits and _; give another"
        )
    if group != group_of(config, name):
        raise InputError(f"{field}: there is {group_of(config, name)}.{name} too; rename one")
    required = GROUPS[group]
    if not config[group][name][required]:
        defined = [other for other in config[group] if config[group][other][required]]
        close = difflib.get_close_matches(name, defined, 1, 0.6)
        hint = f"; did you mean {group}.{close[0]}?" if close else ""
        raise InputError(f"{field}.{required} is empty; give --config.{field}.{required}=…{hint}")


def _check_known(config: ConfigDict, field: str, name: str, group: str, *extra: str) -> None:
    """Raises InputError for a name that is neither in the group nor among ``extra``."""
    names = [*extra, *config[group]]
    if name not in names:
        hint = f"or define it: --config.{group}.NAME.…"
        raise InputError(f"{field}: {name!r} is not one of {', '.join(names)}; give one, {hint}")


def _check_arm(config: ConfigDict, field: str, arm: ConfigDict) -> list[str]:
    """The names in an arm's reward: models of an ensemble, or the two arms of a log-ratio.

    Raises InputError for a reward that the learner lacks or does not use, and for invalid rewards.
    """
    names = split_names(arm.reward)
    if arm.learner in ALGORITHMS and not names:
        raise InputError(f"{field}.reward is empty; {arm.learner} needs a reward model's name")
    if arm.learner not in ALGORITHMS and arm.reward:
        raise InputError(
            f"{field}.reward={arm.reward}: {arm.learner} learns from data, not rewards; drop it"
        )
    if arm.reward == ORACLE and not config.embedded:
        raise InputError(
            f"{field}.reward=oracle: is the embedded world's only; drop the arm from run_arms"
        )
    if ":" in arm.reward:
        if not re.fullmatch(r"\w+:\w+(:\d*\.?\d+)?", arm.reward):
            raise InputError(
                f"{field}.reward={arm.reward}: is not POLICY:REFERENCE or POLICY:REFERENCE:WEIGHT; "
                "give the names of two arms"
            )
        names = arm.reward.split(":")[:2]
        for name in names:
            _check_known(config, f"{field}.reward", name, "arms", BASE)
        return names
    for name in names:
        oracle = (ORACLE,) * (len(names) == 1)
        _check_known(config, f"{field}.reward", name, "reward_models", *oracle)
    if len({config.reward_models[name].loss == "sequence" for name in names if name != ORACLE}) > 1:
        raise InputError(
            f"{field}.reward={arm.reward}: mixes token and sequence rewards; give reward models "
            "of one kind"
        )
    return names


def _check_data(config: ConfigDict, field: str, data: list[str]) -> list[str]:
    """The rounds and parts that a ``data`` field depends on; raises InputError for bad names."""
    if not data:
        raise InputError(f"{field}.data is empty; give {', '.join(DATA)} or rounds")
    parts = [part for source in data if (part := part_of(source))]
    if parts and "edits" in data:
        raise InputError(f"{field}.data: edits has edits_{parts[0]} already; give one of them")
    if "preferences" in data and not (config.embedded or config.files.preferences):
        raise InputError(f"{field}.data=preferences: give files.preferences, or drop it")
    rounds = [source for source in data if not part_of(source)]
    for source in rounds:
        _check_known(config, f"{field}.data", source, "rounds", *DATA, "edits_1_of_2")
    return [*rounds, *(PARTS_PREFIX + split_part(f"{field}.data", part)[1] for part in parts)]
