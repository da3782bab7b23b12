"""What the texts, tokenizers and places of a configuration break, before any work: read
from disk, so apart from the rules of the configuration itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from alia_ctx.config.layer_rules import gpu_remarks, queue_problem
from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.data.tokens import TokenStore, vocabulary_problems
from alia_ctx.errors import AliaError, ConfigError, Problem, Problems
from alia_ctx.hf import assets, targets
from alia_ctx.spec.compute_capability import kernel_speed
from alia_ctx.workflow.chain import run_directory
from alia_ctx.workflow.idle_settings import idle_settings
from alia_ctx.workflow.importing import require_imported_from_base
from alia_ctx.workflow.plan_work import check_stage
from alia_ctx.workflow.planned import planned_stage, room_on_a_gpu
from alia_ctx.workflow.readiness import require_ready
from alia_ctx.workflow.stores import require_same_text, text_sources

_READ_WHOLE = 64 << 20  # bytes; of larger files of an export only the size is compared


def check_all(run: RunConfig, where: str | Path, stages: Sequence[str] = ()) -> None:
    """What `check` finds beyond the configuration itself, all at once: stages trained with
    other settings, or on what others hold out, plans that no packing can mend, a base that
    was imported from another model, ids that the model does not have, what the end would be
    refused for, text that was made from something else. Raises it as one AliaError.
    """
    steps: list[Callable[[], object]] = []
    if not run.deferred(run.output):  # first: it says which of two sides to restore
        steps += [partial(check_stage, run, name) for name in stages or run.stages]
        steps += [partial(require_ready, run, name) for name in stages or run.stages]
    steps += [partial(require_imported_from_base, run)]
    steps += [partial(check_vocabulary, run, where), partial(check_end, run, where)]
    if not run.deferred(run.tokenizer):
        steps.append(partial(require_same_text, run))
    errors: dict[str, AliaError] = {}
    for step in steps:
        try:
            step()
        except AliaError as error:
            errors.setdefault(str(error), error)
    if len(errors) > 1:
        raise AliaError("\n".join(errors))
    for only in errors.values():
        raise only


def check_vocabulary(run: RunConfig, where: str | Path) -> None:
    """ConfigError unless every id of the tokenizer, and of every store that is there, has
    a row in the model's embedding. What lies on a root that is not mounted is left out.
    """
    problems = Problems()
    if not run.deferred(run.tokenizer):
        problems += _tokenizer_problems(run)
    problems += _store_problems(run)
    if problems:
        raise ConfigError(f"{where} has {problems.counted()}", problems)


def _tokenizer_problems(run: RunConfig) -> Sequence[Problem]:
    try:
        return vocabulary_problems(
            run.tokenizer, run.model.vocab_size, model_type=run.model.architecture
        )
    except AliaError as error:
        remedy = "give the directory of the model's tokenizer"
        return [Problem("tokenizer", run.tokenizer, str(error), remedy)]


def _store_problems(run: RunConfig) -> Problems:
    problems = Problems()
    for name, spec in text_sources(run).items():
        if spec.store is None or run.deferred(spec.store):
            continue
        try:
            TokenStore(Path(spec.store)).check_vocabulary(run.model.vocab_size)
        except AliaError as error:
            key = "evaluation" if name == HELD_OUT else "data.sources"
            remedy = (
                "make the store anew, where it was made, with this model's tokenizer"
            )
            problems.add(f"{key}.{name}.store", spec.store, str(error), remedy)
    return problems


def check_end(run: RunConfig, where: str | Path) -> None:
    """ConfigError with all that `run` would be refused for at its end, when everything is
    trained: tokenizer files that no export takes along, an export that is not ours to
    replace, places that cannot be written. What lies on a root that is not mounted is
    left out.
    """
    problems = Problems()
    if not run.deferred(run.tokenizer):
        problems += _asset_problems(run)
    if not run.deferred(run.output):
        problems += _export_problems(run)
        problems += _place_problems(run)
    if problems:
        raise ConfigError(f"{where} has {problems.counted()}", problems)


def _asset_problems(run: RunConfig) -> Problems:
    problems, directory = Problems(), Path(run.tokenizer)
    for check in (
        lambda: assets.asset_files(directory, assets.tokenizer_assets(directory)),
        lambda: assets.check_readable(directory),
    ):
        try:
            check()
        except AliaError as error:
            remedy = "mend it now: no model can be exported with it"
            problems.add("tokenizer", run.tokenizer, str(error), remedy)
    return problems


def _export_problems(run: RunConfig) -> Problems:
    """What stands where `run` exports the last stage, and is not ours to replace."""
    problems, last = Problems(), list(run.stages)[-1]
    directory = run_directory(run).hf(last)
    foreign = partial(targets.foreign_in_export, largest=_READ_WHOLE)
    try:
        targets.check_target(directory, run_directory(run).stage(last), True, foreign)
    except AliaError as error:
        remedy = f"move {directory} away; stage {last} is exported to that place"
        problems.add("output", run.output, str(error), remedy)
    return problems


def _place_problems(run: RunConfig) -> Problems:
    problems, places = Problems(), run_directory(run)
    stages = [places.stage(name) for name in run.stages]
    hf = places.hf(next(iter(run.stages))).parent
    for place in (*stages, places.tokens, places.evaluations, places.report, hf):
        there = next(
            p for p in (place, *place.absolute().parents) if os.path.lexists(p)
        )
        if not there.is_dir():
            rule, remedy = f"{there} is no directory", "move it away"
        elif not os.access(there, os.W_OK | os.X_OK):
            rule, remedy = f"{there} cannot be written", "mend the permissions"
        else:
            continue
        problems.add("output", run.output, rule, f"{remedy}, or choose another output")
    return problems


def gpu_notes(run: RunConfig, names: Sequence[str] = ()) -> list[str]:
    """What a person should know of settings that do nothing in stages (default: all), and,
    on a machine with GPUs, of attention kernel, layers and memory there; without them what a
    run that wants them was not asked for.
    """
    stages = names or list(run.stages)
    idle = [*idle_settings(run, stages), *gpu_remarks(run.engine, run.cluster)]
    if (asked := queue_problem(run.engine, run.cluster, run.launch)) is not None:
        idle.append(str(asked))  # more than ranks, as fewer are refused
    if shutil.which("nvidia-smi") is None:
        return [*idle, *_not_looked_at(run)]
    # Imports torch, for whose seconds a machine without GPUs need not wait.
    from alia_ctx.cluster import software
    from alia_ctx.workflow.doctor import needs_of

    there = software.gpu_memory_gib()
    return [
        *idle,
        *(_not_looked_at(run) if there is None else ()),
        *software.gpu_notes(needs_of(run, stages)),
        *(_without_room(run, stages, there) if there else ()),
        *_without_host_memory(run, stages),
    ]


def _not_looked_at(run: RunConfig) -> Iterator[str]:
    """Of a run that wants GPUs, where there are none: what only they can say."""
    engine = run.engine
    if engine.device != "cuda":
        return
    layers = ", layers by TransformerEngine"
    if engine.layers == "local" and engine.fp8 == "off":
        layers = ""
    attention = engine.attention
    if attention == "auto" and engine.precision == "fp32":  # whatever the GPU
        attention = "reference"
        yield (
            f"attention: reference, {kernel_speed(attention)} on a GPU, as the fast kernels "
            "do not compute in fp32; set engine.precision=bf16"
        )
    yield (
        f"not looked at, as no GPU is here: attention by {attention}{layers}, and the "
        "memory of GPU and host; `alia-ctx check` and `alia-ctx doctor` look where the GPU is"
    )


def _without_room(run: RunConfig, names: Sequence[str], there: float) -> Iterator[str]:
    for name in names:
        try:
            words, remedy = room_on_a_gpu(run, name, there)
        except AliaError:
            continue  # said where its sizes or layout are judged
        if remedy:
            yield f"stage {name}: {words}; {' '.join(remedy)}"


def _without_host_memory(run: RunConfig, names: Sequence[str]) -> Iterator[str]:
    """Stages whose offloaded activations, with what a save copies, a host like this one lacks
    the memory for: the engine would refuse the former at their start, and the latter would
    come later.
    """
    if not run.engine.offload_activations:
        return
    from alia_ctx.cluster.software import host_memory_gib

    available = host_memory_gib()
    for name in names:
        with suppress(AliaError):  # said where its sizes or layout are judged
            items = planned_stage(run, name).host_items
            away = items.get("offloaded activations", 0.0)
            copied = items.get("copy for a save", 0.0)
            if away and away + copied > available:
                yield (
                    f"stage {name}: offloaded activations take {away:,.0f} GiB and a save's "
                    f"copy {copied:,.0f} of a node's host memory, and {available:,.0f} are "
                    "available here"
                )
