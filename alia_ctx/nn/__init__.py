"""The model's parts that are ours, in torch:

rotation, attention, loss. Nothing here imports Megatron.
"""

from alia_ctx.optional_packages import guard

guard()  # before a kernel of another package is imported
