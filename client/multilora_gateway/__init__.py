"""The HTTP front door: the APIs of TGI, OpenAI, vLLM and LoRAX on top of the Triton models.

It renders chats, tokenises, and speaks gRPC with `multilora_llm` and `adapters`; what a request
asks for is checked here as far as the API says, and by the engine beyond that.
"""
