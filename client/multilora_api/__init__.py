"""What the engine, the client and the gateway agree on: parameters, tensors, actions and names.

Law: each fact that more than one of them needs stands here once, in the standard library alone.
"""
