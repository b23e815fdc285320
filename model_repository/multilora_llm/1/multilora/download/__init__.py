"""Adapters from elsewhere (the Hub, object stores) → a folder on this machine."""
