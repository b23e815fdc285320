"""Text ↔ token ids: what the engine in the server and the gateway before it both do.

Knows tokenizers and chat templates; nothing of servers, requests or tensors.
"""
