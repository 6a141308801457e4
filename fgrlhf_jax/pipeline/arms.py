"""The arms of a study: its policies, and the reward models and rounds of edits they are made from.

All are fields of the config, ``arms.NAME``, ``reward_models.NAME`` and ``rounds.NAME``; what one is
made from is named in its fields, so that together they are a graph without circles:

    arm           start (another arm), reward (reward model), data (rounds), {ARM} in its flags
    reward model  start (an arm), data (rounds), {ARM} in its flags
    round         policy (an arm), whose responses are edited
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
_PART = r"([1-9]\d*)_of_([1-9]\d*)"  # the prompts of a round; edits_1_of_3: the edits on them
GROUPS = {"arms": "arm", "reward_models": "reward model", "rounds": "round"}
_USED = (BASE, *DATA, "data", "answers", "feedback", "samples", "tables")  # have other meanings


def group_of(config: ConfigDict, name: str) -> str:
    """The group of ``GROUPS`` that a name is in, or ""."""
    return next((group for group in GROUPS if name in config[group]), "")


def split_names(text: str) -> list[str]:
    """The names in a field such as ``run_arms``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def select(config: ConfigDict) -> list[str]:
    """The arms that ``config.run_arms`` names and all they are made from, each after its needs.

    Raises:
      InputError: for unknown names, circles, and what the config's data cannot train.
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
    member, field = config[group][name], f"{group}.{name}"
    if group == "rounds":
        start, rewards, data = member.policy, [], []
        _known(config, f"{field}.policy", start, "arms", BASE)
        _check_part(f"{field}.part", member.part)
    else:
        start, data = member.start, split_names(member.data)
        rewards = [member.reward] if group == "arms" and member.reward else []
        _known(config, f"{field}.start", start, "arms", BASE)
        for each in data:
            if _part_of(each):
                _check_part(f"{field}.data", _part_of(each))
            else:
                _known(config, f"{field}.data", each, "rounds", *DATA, "edits_1_of_2")
        for each in rewards:
            _known(config, f"{field}.reward", each, "reward_models", ORACLE)
        if group == "arms":
            _check_arm(config, field, member)
        _check_data(config, field, data)
    flags = "" if group == "rounds" else f"{member.defaults},{member.flags}"
    references = re.findall(r"\{(.*?)\}", flags)
    for each in references:
        _known(config, f"{field}.flags", each, "arms", BASE)
    given = (start, *rewards, *data, *references)
    ready = (BASE, ORACLE, *DATA)
    return [each for each in dict.fromkeys(given) if each not in ready and not _part_of(each)]


def parts(config: ConfigDict) -> list[tuple[int, int]]:
    """(K, N) of each Kth of N parts of the feedback's prompts that anything is made of."""
    members = [config[group_of(config, name)][name] for name in select(config)]
    named = [_part_of(name) for m in members for name in split_names(m.get("data", ""))]
    named += [m.part for m in members if "part" in m]
    return sorted({tuple(map(int, part.split("_of_"))) for part in named if part})


def _part_of(data: str) -> str:
    """ "1_of_3" of "edits_1_of_3"; "" of other names."""
    return data.removeprefix("edits_") if re.fullmatch(f"edits_{_PART}", data) else ""


def _check_part(field: str, part: str) -> None:
    found = re.fullmatch(_PART, part)
    if not found or int(found[1]) > int(found[2]):
        raise InputError(f"{field}={part}: is no part of the prompts; give for instance 2_of_3")


def reward_level(config: ConfigDict, name: str) -> str:
    """Whether an arm's reward model pays for tokens or a sequence, as ``level`` of launch.ppo."""
    model = config.reward_models.get(config.arms[name].reward)
    return "sequence" if model and model.loss == "sequence" else "token"


def _check_name(config: ConfigDict, group: str, name: str) -> None:
    """Raises InputError for a name that has another meaning, or is a misspelt one."""
    field = f"{group}.{name}"
    used = (*_USED, ORACLE) if group == "reward_models" else _USED
    if name in used or not re.fullmatch(r"\w+", name):
        raise InputError(
            f"{field}: the name is taken or not of letters, digits and _; give another"
        )
    if group != group_of(config, name):
        raise InputError(f"{field}: there is {group_of(config, name)}.{name} too; rename one")
    required = {"arms": "learner", "reward_models": "loss", "rounds": "policy"}[group]
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


def _check_arm(config: ConfigDict, field: str, arm: ConfigDict) -> None:
    """Raises InputError for a learner without what it learns from."""
    if arm.learner in ALGORITHMS and not arm.reward:
        raise InputError(f"{field}.reward is empty; {arm.learner} needs a reward model's name")
    if arm.learner not in ALGORITHMS and arm.reward:
        raise InputError(
            f"{field}.reward={arm.reward}: {arm.learner} learns from data, not rewards; drop it"
        )
    if arm.reward == ORACLE and not config.embedded:
        raise InputError(
            f"{field}.reward=oracle: is the embedded world's only; drop the arm from run_arms"
        )


def _check_data(config: ConfigDict, field: str, data: list[str]) -> None:
    if not data:
        raise InputError(f"{field}.data is empty; give {', '.join(DATA)} or rounds")
    part = next(filter(_part_of, data), "")
    if part and "edits" in data:
        raise InputError(f"{field}.data: edits has {part} already; give one of them")
    if "preferences" in data and not (config.embedded or config.files.preferences):
        raise InputError(f"{field}.data=preferences: give files.preferences, or drop it")
