"""Text ↔ token ids, for the engine and for the gateway.

Law: this package knows tokenizers and chat templates, and nothing of servers, requests or tensors.
"""
