"""Export to compressed-tensors, the format of quantized checkpoints that vLLM and transformers read.

Internal: it may change with any version.
"""
