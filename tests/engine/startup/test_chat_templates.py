"""The base model's chat template is tried when the server starts."""

from pathlib import Path

import pytest

from multilora.config import EngineConfig
from multilora.engine import Engine
from multilora.errors import StartupError
from support.tiny.base import write_base
from support.tiny.tokenizers import byte_level

TEMPLATES = {
    "does not compile (Expected an expression": "{% if %}",
    "takes more memory than the server allows": "{{ 'x' * 10 ** 10 }}",
}


@pytest.mark.parametrize(("reason", "source"), TEMPLATES.items())
def test_a_server_does_not_start_with_a_harmful_template(
    tmp_path: Path, reason: str, source: str
) -> None:
    folder = write_base(tmp_path / "base")
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(source)
    with pytest.raises(StartupError) as caught:
        Engine(EngineConfig(model_id=str(folder), device="cpu", threads=1))
    message = str(caught.value)
    assert message.startswith(f"the chat template in {folder} {reason}")
    assert message.endswith("; fix or remove it")
