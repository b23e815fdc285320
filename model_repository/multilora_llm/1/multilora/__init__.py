"""The engine behind the Triton model `multilora_llm`: it knows token ids, never text or tensors
of the Triton server. Layers, top to bottom: engine → device (torch, kernels) → pure (standard
library). Imports point down only.
"""
