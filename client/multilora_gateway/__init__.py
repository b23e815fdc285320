"""The HTTP gateway: the APIs of TGI, OpenAI, vLLM and LoRAX on top of the Triton models.

The gateway renders chats, tokenises, and speaks gRPC with `multilora_llm` and `adapters`. It checks
what an API defines; the engine checks the rest. Imports point down: routes → openai and tgi →
generation → backend, http → errors, settings. Law: openai and tgi never import each other.
"""
