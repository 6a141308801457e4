"""The arms of a study: its policies, and the reward models and rounds of edits they are made from.

All are fields of the config, ``arms.NAME``, ``reward_models.NAME`` and ``rounds.NAME``; what one is
made from is named in its fields, so that together they are a graph without circles:

    arm           start (another arm), reward (reward models or arms), data, {ARM} in its flags
    reward model  start (an arm), data, {ARM} in its flags
    round         policy (an arm), whose responses are edited, part
    data          rounds, or edits_K_of_N, those on the Kth of N parts of the prompts
"""

import difflib
import re

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.ppo.algorithm import ALGORITHMS

PREFERENCE_LEARNERS = ("dpo", "ddpo", "salt", "figa")
LEARNERS = ("sft", *PREFERENCE_LEARNERS, *ALGORITHMS)
BASE, ORACLE = "sft", "oracle"  # the policy that all starts from; the world's own token rewards
DATA = ("edits", "preferences")  # feedback on the first policy
PARTS = "parts_of_"  # parts_of_3: the prompts and edits of the feedback in three parts
GROUPS = {"arms": "learner", "reward_models": "loss", "rounds": "policy"}  # what a member must say
_USED = (BASE, *DATA, "data", "answers", "feedback", "samples", "tables")  # have other meanings


def group_of(config: ConfigDict, name: str) -> str:
    """The group of ``GROUPS`` that a name is in, or ""."""
    return next((group for group in GROUPS if name in config[group]), "")


def split_names(text: str) -> list[str]:
    """The names in a field such as ``run_arms``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def select(config: ConfigDict) -> list[str]:
    """The arms that ``config.run_arms`` names and all they are made from, each after its needs.

    Raises InputError for unknown names, circles, and what the config's data cannot train.
    """
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " → ".join([*path[path.index(name) :], name])
            raise InputError(f"{circle}: each is made from the next, in a circle; open it")
        if name not in order:
            for need in needs_of(config, name):
                visit(need, (*path, name))
            order.append(name)

    for group in GROUPS:
        for name in config[group]:
            _check_name(config, group, name)
    for name in split_names(config.run_arms):
        _known(config, "run_arms", name, "arms")
        visit(name, ())
    return order


def selected(config: ConfigDict, group: str, order: list[str]) -> dict[str, str]:
    """Labels of the members of one group among ``select(config)``, in that order."""
    members = config[group]
    return {name: members[name].label or name for name in order if name in members}


def needs_of(config: ConfigDict, name: str) -> list[str]:
    """What an arm, a reward model or a round is made from, without the base."""
    group = group_of(config, name)
    if not group:  # parts of the prompts
        return []
    member, field = config[group][name], f"{group}.{name}"
    if group == "rounds":
        _known(config, f"{field}.policy", member.policy, "arms", BASE)
        needs = [member.policy, PARTS + split_part(f"{field}.part", member.part)[1]]
    else:
        _known(config, f"{field}.start", member.start, "arms", BASE)
        rewards = _check_arm(config, field, member) if group == "arms" else []
        data = _check_data(config, field, split_names(member.data))
        references = re.findall(r"\{(.*?)\}", f"{member.defaults},{member.flags}")
        for each in references:
            _known(config, f"{field}.flags", each, "arms", BASE)
        needs = [member.start, *rewards, *data, *references]
    return [each for each in dict.fromkeys(needs) if each not in (BASE, ORACLE, *DATA)]


def split_part(field: str, part: str) -> tuple[str, str]:
    """K and N of the field ``K_of_N``, the Kth of N parts of the feedback's prompts."""
    found = re.fullmatch(r"([1-9]\d*)_of_([1-9]\d*)", part)
    if not found or int(found[1]) > int(found[2]):
        raise InputError(f"{field}={part}: is no part of the prompts; give for instance 2_of_3")
    return found[1], found[2]


def part_of(data: str) -> str:
    """ "1_of_3" of "edits_1_of_3"; "" of other names."""
    return data.removeprefix("edits_") if re.fullmatch(r"edits_\d+_of_\d+", data) else ""


def reward_level(config: ConfigDict, name: str) -> str:
    """Whether an arm's reward model pays for tokens or a sequence, as ``level`` of launch.ppo."""
    model = config.reward_models.get(split_names(config.arms[name].reward)[0])
    return "sequence" if model and model.loss == "sequence" else "token"


def _check_name(config: ConfigDict, group: str, name: str) -> None:
    """Raises InputError for a name that has another meaning, or is a misspelt one."""
    field = f"{group}.{name}"
    used = (*_USED, ORACLE) if group == "reward_models" else _USED
    if name in used or not re.fullmatch(rf"(?!{PARTS})\w+", name):
        raise InputError(
            f"{field}: the name is taken or not of letters, digits and _; give another"
        )
    if group != group_of(config, name):
        raise InputError(f"{field}: there is {group_of(config, name)}.{name} too; rename one")
    required = GROUPS[group]
    if not config[group][name][required]:
        known = [each for each in config[group] if config[group][each][required]]
        close = difflib.get_close_matches(name, known, 1, 0.6)
        hint = f"; did you mean {group}.{close[0]}?" if close else ""
        raise InputError(f"{field}.{required} is empty; give --config.{field}.{required}=…{hint}")


def _known(config: ConfigDict, field: str, name: str, group: str, *others: str) -> None:
    """Raises InputError for a name that is not in that group, nor one of the ``others``."""
    names = [*others, *config[group]]
    if name not in names:
        hint = f"or define it: --config.{group}.NAME.…"
        raise InputError(f"{field}: {name!r} is not one of {', '.join(names)}; give one, {hint}")


def _check_arm(config: ConfigDict, field: str, arm: ConfigDict) -> list[str]:
    """The names in the reward of an arm: models of an ensemble, or the arms of a log-ratio.

    Raises InputError for a learner without what it learns from, and rewards that cannot be.
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
        for each in names:
            _known(config, f"{field}.reward", each, "arms", BASE)
        return names
    for each in names:
        _known(config, f"{field}.reward", each, "reward_models", *(ORACLE,) * (len(names) == 1))
    if len({config.reward_models[each].loss == "sequence" for each in names if each != ORACLE}) > 1:
        raise InputError(
            f"{field}.reward={arm.reward}: some reward tokens, some sequences; an ensemble is of "
            "reward models that are alike"
        )
    return names


def _check_data(config: ConfigDict, field: str, data: list[str]) -> list[str]:
    """What the names in a ``data`` field are made from."""
    if not data:
        raise InputError(f"{field}.data is empty; give {', '.join(DATA)} or rounds")
    parts = [part for each in data if (part := part_of(each))]
    if parts and "edits" in data:
        raise InputError(f"{field}.data: edits has edits_{parts[0]} already; give one of them")
    if "preferences" in data and not (config.embedded or config.files.preferences):
        raise InputError(f"{field}.data=preferences: give files.preferences, or drop it")
    rounds = [each for each in data if not part_of(each)]
    for each in rounds:
        _known(config, f"{field}.data", each, "rounds", *DATA, "edits_1_of_2")
    return [*rounds, *(PARTS + split_part(f"{field}.data", part)[1] for part in parts)]
