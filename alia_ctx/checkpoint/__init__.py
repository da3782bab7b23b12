"""What a checkpoint is on disk:

its directory, its manifest, the files of its state. Nothing here imports Megatron.
"""

from alia_ctx.checkpoint.directory import (
    ASSETS,
    STATE,
    begin,
    checkpoint_name,
    commit,
    discard,
    file_entry,
    latest,
    list_checkpoints,
    publish,
    retain,
    set_aside,
    sweep,
    temporary_path,
    verify_files,
)
from alia_ctx.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    StageLedger,
    read_manifest,
)

__all__ = [
    "ASSETS",
    "FORMAT_VERSION",
    "MANIFEST",
    "STATE",
    "Manifest",
    "StageLedger",
    "begin",
    "checkpoint_name",
    "commit",
    "discard",
    "file_entry",
    "latest",
    "list_checkpoints",
    "publish",
    "read_manifest",
    "retain",
    "set_aside",
    "sweep",
    "temporary_path",
    "verify_files",
]
