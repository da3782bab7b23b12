"""The model's parts that are ours, in torch:

rotation, attention, loss. Nothing here imports Megatron.
"""
