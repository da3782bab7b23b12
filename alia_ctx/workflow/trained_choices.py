"""The choices of RoPE that an ablation trains: the published ones, or those of a file."""

from __future__ import annotations

import re

from alia_ctx.config.load import read_config
from alia_ctx.config.run import RunConfig
from alia_ctx.config.schema import build
from alia_ctx.errors import ConfigError, Problem, Problems
from alia_ctx.planner import standard_choices
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.workflow.comparing_rope import base_rope, left_out_ropes

BUILTIN = "builtin"
TRAINED = ("llama3", "theta", "yarn", "ntk", "linear")  # of the published choices
_NAME = re.compile(r"[\w.+-]+")


def choices_to_train(
    run: RunConfig, name: str, choices: str
) -> tuple[dict[str, RopeSpec], list[str]]:
    """(the RoPE of each choice by name, which of the published are left out and why);
    ConfigError where one breaks a rule, or none is left.
    """
    if choices == BUILTIN:
        return _published(run, name)
    stage = run.stage(name)
    raw, problems, ropes = read_config(choices), Problems(), {}
    for label, fields in raw.items():
        rope = build(RopeSpec, fields, label, problems)
        problems.need(
            _NAME.fullmatch(label) is not None,
            label,
            label,
            "is a choice's name, of letters, digits and _ . + -",
            "call it otherwise",
        )
        if rope is not None:
            problems += rope.problems(label, stage.context, run.model.head_dim)
            ropes[label] = rope
    problems.need(bool(raw), choices, "{}", "names no choice", "add NAME: {type: ...}")
    if problems:
        raise ConfigError(f"{choices} has {problems.counted()}", problems)
    return ropes, []


def _published(run: RunConfig, name: str) -> tuple[dict[str, RopeSpec], list[str]]:
    base, trained = base_rope(run, name)
    context = run.stage(name).context
    published = standard_choices(base, run.model.head_dim, trained, context)
    left_out = left_out_ropes(run, name)
    remarks = [f"no {way}: {left_out[way]}" for way in TRAINED if way in left_out]
    ropes = {way: published[way] for way in TRAINED if way in published}
    if not ropes:
        rules = remarks or [
            f"the base was trained at {trained:,} tokens, so that {context:,} ask for "
            "no other RoPE"
        ]
        remedy = "name RoPEs of your own in a YAML, --choices FILE"
        problems = [Problem("--choices", BUILTIN, rule, remedy) for rule in rules]
        raise ConfigError(f"there is no published choice for stage {name}", problems)
    return ropes, remarks
