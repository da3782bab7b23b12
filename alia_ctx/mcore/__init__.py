"""The adapter to Megatron-Core: every file here needs Megatron, or stands beneath it."""

from alia_ctx.errors import LayoutError
from alia_ctx.mcore.lazy_compile import compiling_when_called
from alia_ctx.mcore.quiet import quiet_upstream
from alia_ctx.nn.layer_choice import hide_where_unusable
from alia_ctx.optional_packages import guard, hidden_have_no_version, reason

# Upstream warns while it is imported, about what a host does not have. Whoever imports
# a module of this package passes here first, so that its filters hold for just that.
with quiet_upstream(), hidden_have_no_version():
    guard()
    hide_where_unusable()
    try:
        with compiling_when_called():
            import megatron.core.dist_checkpointing
            import megatron.core.distributed
            import megatron.core.models.gpt.gpt_layer_specs
            import megatron.core.optimizer  # noqa: F401
    except ImportError as error:
        # Of what it cannot do without: itself, or triton, which it imports in no `try`.
        words = f"Megatron-Core does not import ({reason(error)})"
        remedy = (
            f"reinstall {error.name or 'it'}; `alia-ctx doctor` names what is broken"
        )
        raise LayoutError(f"{words}; {remedy}") from error
