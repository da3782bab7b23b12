"""The adapter to Megatron-Core: every file here needs Megatron, or stands beneath it."""

from alia_ctx.mcore.quiet import quiet_upstream
from alia_ctx.nn.layer_choice import hide_where_unusable
from alia_ctx.optional_packages import guard, hidden_have_no_version

# Upstream warns while it is imported, about what a host does not have. Whoever imports
# a module of this package passes here first, so that its filters hold for just that.
with quiet_upstream(), hidden_have_no_version():
    guard()
    hide_where_unusable()
    import megatron.core.dist_checkpointing
    import megatron.core.distributed
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer  # noqa: F401
