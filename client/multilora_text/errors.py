"""What goes wrong with text, in words for whoever sent or configured it."""


class TextError(ValueError):
    """A tokenizer or template that cannot be used, or messages it refuses; says what to do."""
