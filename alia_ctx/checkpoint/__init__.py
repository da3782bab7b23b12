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
    record_begun,
    remnants,
    retain,
    sweep,
    temporary_path,
    update_of,
    was_begun,
)
from alia_ctx.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    DamagedError,
    Manifest,
    StageLedger,
    UnreadableError,
    read_manifest,
)
from alia_ctx.checkpoint.opening import (
    agreed_checkpoints,
    open_checkpoint,
    verify_files,
    verify_names,
)

__all__ = [
    "ASSETS",
    "FORMAT_VERSION",
    "MANIFEST",
    "STATE",
    "DamagedError",
    "Manifest",
    "StageLedger",
    "UnreadableError",
    "agreed_checkpoints",
    "begin",
    "checkpoint_name",
    "commit",
    "discard",
    "file_entry",
    "latest",
    "list_checkpoints",
    "open_checkpoint",
    "publish",
    "read_manifest",
    "record_begun",
    "remnants",
    "retain",
    "sweep",
    "temporary_path",
    "update_of",
    "verify_files",
    "verify_names",
    "was_begun",
]
