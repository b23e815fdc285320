"""Kernels of multi-LoRA serving: they know tensors only, of torch and OpenAI Triton.

Each op is one module: GPU kernel, launcher, CPU path, float64 reference.
"""
