"""The hand-written language model: PyTorch, NumPy and safetensors, and nothing else of this project.

Read in this order: config, rope, attention, model, losses, batches, optim, trainer, generate (README.md
says why).
"""
