"""A server under attack: what breaks is counted. run.py begins."""
