"""The error of this package; its message is for whoever sent or configured the text."""


class TextError(ValueError):
    """A tokenizer or template that cannot be used, or messages that it refuses; says what to do."""
