"""What a run has to do with the machines that it runs on: batch files and the queue that
takes them, and whether the machines are fit for it.
"""

from alia_ctx.cluster.batch import (
    Job,
    batch_file,
    queue_comment,
    queue_name,
    shell_script,
    unwritable,
)
from alia_ctx.cluster.queue import QueuedJob, QueueError, Slurm, label_of

__all__ = [
    "Job",
    "QueueError",
    "QueuedJob",
    "Slurm",
    "batch_file",
    "label_of",
    "queue_comment",
    "queue_name",
    "shell_script",
    "unwritable",
]
