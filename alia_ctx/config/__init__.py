"""YAML and overrides -> frozen dataclasses, checked as a whole before anything else happens."""

from alia_ctx.config.evaluation import EvaluationConfig
from alia_ctx.config.load import load_run
from alia_ctx.config.run import (
    RANDOM,
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    MetricsConfig,
    OptimizerConfig,
    RunConfig,
    Sink,
    StageConfig,
    position_edges,
)

__all__ = [
    "RANDOM",
    "CheckpointConfig",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "MetricsConfig",
    "OptimizerConfig",
    "RunConfig",
    "Sink",
    "StageConfig",
    "load_run",
    "position_edges",
]
