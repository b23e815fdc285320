"""The errors of this package; their messages are for whoever sent or configured the text."""


class TextError(ValueError):
    """A tokenizer or template that cannot be used, or messages that it refuses; says what to do."""


class RenderingBusy(TextError):
    """No chat can be rendered at the moment; the same request may succeed later."""
