"""The Triton model `vllm_model` answers clients of the Triton vLLM backend as that backend does."""

import json
import queue
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from launcher.repository import REPOSITORY
from launcher.triton.server import TritonServer
from support.e2e.triton import (
    DEMO_SETTINGS,
    SECONDS,
    Example,
    eventually,
    metrics,
    post,
    stream_events,
    token_ids,
    wait_until_idle,
)

MODEL = "vllm_model"
RETURNS = (
    "finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens"
)  # fmt: skip
EVERYTHING: dict[str, Any] = {f"return_{name}": True for name in RETURNS}
Outputs = dict[str, np.ndarray]


class Client:
    """One gRPC stream, used as that backend's clients use theirs."""

    def __init__(self, server: TritonServer, model: str = MODEL) -> None:
        self._model = model
        self.responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.client = triton.InferenceServerClient(server.grpc_address)
        self.client.start_stream(
            lambda result, error: self.responses.put(error or result), stream_timeout=SECONDS
        )

    def ask(
        self,
        prompt: str,
        sampling: dict[str, Any] | None = None,
        request_id: str = "1",
        parameters: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> None:
        """Every tensor has the shape [1]."""
        tensors = [_tensor("text_input", "BYTES", prompt.encode(), np.object_)]
        if sampling is not None:
            text = json.dumps(sampling).encode()
            tensors.append(_tensor("sampling_parameters", "BYTES", text, np.object_))
        tensors += [_tensor(name, "BOOL", value, np.bool_) for name, value in inputs.items()]
        self.client.async_stream_infer(
            self._model,
            tensors,
            request_id=request_id,
            parameters=parameters,
            enable_empty_final_response=True,
        )

    def take(self) -> tuple[Outputs, bool]:
        """The outputs of the next response, and whether it is the last. Raises its error."""
        response = self.responses.get(timeout=SECONDS)
        if isinstance(response, InferenceServerException):
            raise response
        message = response.get_response()
        outputs = {output.name: response.as_numpy(output.name) for output in message.outputs}
        return outputs, message.parameters["triton_final_response"].bool_param

    def answers(self) -> list[Outputs]:
        """All responses that have outputs."""
        found: list[Outputs] = []
        last = False
        while not last:
            outputs, last = self.take()
            found += [outputs] if outputs else []
        return found

    def whole(self, prompt: str, sampling: dict[str, Any] | None = None, **inputs: Any) -> Outputs:
        """The only response to a request that does not stream."""
        self.ask(prompt, sampling, **inputs)
        (outputs,) = self.answers()
        return outputs

    def text(self, prompt: str, sampling: dict[str, Any] | None = None, **inputs: Any) -> str:
        return self.whole(prompt, sampling, **inputs)["text_output"][0].decode()

    def error(self, prompt: str, sampling: dict[str, Any] | None = None, **inputs: Any) -> str:
        self.ask(prompt, sampling, **inputs)
        with pytest.raises(InferenceServerException) as caught:
            self.answers()
        return caught.value.message()


def _tensor(name: str, datatype: str, value: Any, dtype: Any) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], datatype)
    tensor.set_data_from_numpy(np.array([value], dtype=dtype))
    return tensor


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    client = Client(server)
    yield client
    client.client.close()


@pytest.fixture
def upper(demo: list[Example]) -> Example:
    return next(example for example in demo if example.adapter_id == "upper")


def greedy(adapter: str = "upper", **sampling: Any) -> dict[str, Any]:
    """Numbers as strings, as the backend's own client sends them."""
    return {"temperature": "0", "max_tokens": "200", "lora_name": adapter, **sampling}


def test_the_prompt_is_part_of_the_answer_unless_excluded(client: Client, upper: Example) -> None:
    outputs = client.whole(upper.prompt, greedy(), exclude_input_in_output=False)
    assert outputs["text_output"].shape == (1,)
    assert outputs["text_output"][0].decode() == upper.prompt + upper.answer
    assert client.text(upper.prompt, greedy()) == upper.prompt + upper.answer
    assert client.text(upper.prompt, greedy(), exclude_input_in_output=True) == upper.answer


@pytest.mark.parametrize("stream", [False, True])
def test_all_outputs_in_their_form(
    server: TritonServer, client: Client, upper: Example, stream: bool
) -> None:
    client.ask(upper.prompt, greedy(logprobs="2"), stream=stream, **EVERYTHING)
    answers = client.answers()
    assert (len(answers) > 1) is stream
    text = "" if stream else upper.prompt
    cumulative, count = 0.0, 0
    for outputs in answers:
        assert set(outputs) == {"text_output", *RETURNS}
        assert all(each.shape == (1,) for each in outputs.values())
        text_of_logprobs, entries = "", json.loads(outputs["logprobs"][0])
        assert len(entries) == outputs["num_output_tokens"][0]
        for entry in entries:
            assert [one["rank"] for one in entry.values()] == [1, 2]
            first = next(iter(entry.values()))
            text_of_logprobs += first["decoded_token"]
            cumulative += first["logprob"]
            count += 1
        assert outputs["cumulative_logprob"][0] == pytest.approx(cumulative, abs=1e-3)
        assert outputs["num_input_tokens"][0] == len(token_ids(server, upper.prompt))
        assert outputs["num_input_tokens"].dtype == outputs["num_output_tokens"].dtype == np.uint32
        piece = outputs["text_output"][0].decode()
        text += piece if stream else piece.removeprefix(upper.prompt)
    reasons = [outputs["finish_reason"][0] for outputs in answers]
    assert set(reasons[:-1]) <= {b"None"} and reasons[-1] == b"stop"
    assert text == (upper.answer if stream else upper.prompt + upper.answer)
    assert count > 1


def test_logprobs_are_null_where_none_were_asked_for(client: Client, upper: Example) -> None:
    outputs = client.whole(upper.prompt, greedy(), **EVERYTHING)
    assert outputs["logprobs"].tolist() == [b"null"]
    assert outputs["cumulative_logprob"][0] < 0
    outputs = client.whole(upper.prompt, greedy(logprobs=0), **EVERYTHING)
    assert {one["rank"] for one in json.loads(outputs["logprobs"][0])[0].values()} == {1}
    assert set(client.whole(upper.prompt, greedy())) == {"text_output"}


@pytest.fixture(scope="module")
def unsure(server: TritonServer) -> dict[str, Any]:
    """Among the letters that the demo would not write after "abc" it takes any."""
    _, *letters, _ = token_ids(server, "defghijklmnopqrstuvwxyz")  # between special tokens
    return {"allowed_token_ids": letters}


def test_what_is_left_out(client: Client, unsure: dict[str, Any]) -> None:
    """16 tokens, drawn with temperature 1; a prompt alone is a request, too."""
    several = [client.whole("abc", unsure, return_num_output_tokens=True) for _ in range(3)]
    assert {outputs["num_output_tokens"][0] for outputs in several} == {16}
    assert len({outputs["text_output"][0] for outputs in several}) > 1
    assert client.text("abc").startswith("abc")


def test_several_answers(client: Client, upper: Example, unsure: dict[str, Any]) -> None:
    outputs = client.whole(upper.prompt, greedy(n=3), exclude_input_in_output=True, **EVERYTHING)
    assert outputs["text_output"].tolist() == [upper.answer.encode()] * 3
    shapes = {name: outputs[name].shape for name in RETURNS}
    assert shapes == {**dict.fromkeys(RETURNS, (3,)), "num_input_tokens": (1,)}
    asked = {"n": "2", "seed": 5, "logprobs": 0, **unsure}
    whole = client.whole("abc", asked, exclude_input_in_output=True)["text_output"]
    assert len(set(whole.tolist())) == 2
    client.ask("abc", asked, stream=True, **EVERYTHING)
    texts, counts = ["", ""], [0, 0]
    answers = client.answers()
    for outputs in answers:
        for at, piece in enumerate(outputs["text_output"]):
            texts[at] += piece.decode()
            counts[at] += int(outputs["num_output_tokens"][at])
            assert len(json.loads(outputs["logprobs"][at])) == outputs["num_output_tokens"][at]
    assert [text.encode() for text in texts] == whole.tolist() and counts == [16, 16]
    assert answers[-1]["finish_reason"].tolist() == [b"length"] * 2


def test_an_adapter_and_requests_side_by_side(client: Client, demo: list[Example]) -> None:
    for number, example in enumerate(demo):
        sampling = greedy(example.adapter_id)
        client.ask(example.prompt, sampling, str(number), exclude_input_in_output=True)
    texts = {}
    while len(texts) < len(demo):
        response = client.responses.get(timeout=SECONDS)
        message = response.get_response()
        if message.outputs:
            texts[int(message.id)] = response.as_numpy("text_output")[0].decode()
    assert [texts[number] for number in range(len(demo))] == [each.answer for each in demo]


def test_request_parameters(server: TritonServer, client: Client, upper: Example) -> None:
    """They count where the tensor is missing, and only there."""
    sampling = greedy()
    client.ask(upper.prompt, None, parameters=sampling, exclude_input_in_output=True)
    assert client.answers()[0]["text_output"][0].decode() == upper.answer
    other = {**sampling, "lora_name": "nobody"}
    client.ask(upper.prompt, sampling, parameters=other, exclude_input_in_output=True)
    assert client.answers()[0]["text_output"][0].decode() == upper.answer
    body = {"text_input": upper.prompt, "parameters": {"stream": False, **sampling}}
    status, answer = post(server, body, MODEL)
    assert (status, answer["text_output"]) == (200, upper.prompt + upper.answer)
    events = stream_events(server, {"text_input": upper.prompt, "parameters": sampling}, MODEL)
    assert "".join(event["text_output"] for event in events) == upper.answer


def test_constraints(server: TritonServer, client: Client, upper: Example) -> None:
    def ask(**sampling: Any) -> str:
        return client.text(upper.prompt, greedy(**sampling), exclude_input_in_output=True)

    assert ask(structured_outputs=json.dumps({"choice": ["no", "yes"]})) in ("no", "yes")
    assert ask(guided_decoding={"regex": "[0-9]{3}"}).isdigit()
    stop = upper.answer[3:5]
    end = upper.answer.index(stop)
    assert ask(stop=stop) == upper.answer[:end]
    assert ask(stop=[stop], include_stop_str_in_output=True) == upper.answer[: end + 2]
    _, letter, _ = token_ids(server, "z")
    assert set(ask(allowed_token_ids=[letter], max_tokens=5)) == {"z"}
    first = upper.answer[0]
    assert ask(bad_words=[first])[0] != first


def test_a_prompt_and_what_was_said_of_its_tokens(
    server: TritonServer, client: Client, upper: Example
) -> None:
    """Once, however many answers there are, and also when they are streamed."""
    ids = token_ids(server, upper.prompt)
    sampling = greedy(n=2, prompt_logprobs=1, max_tokens=0)
    whole = client.whole(upper.prompt, sampling)
    assert [text.decode() for text in whole["text_output"]] == [upper.prompt] * 2
    (said,) = whole["prompt_logprobs"]
    first, *others = json.loads(said)
    assert first is None and len(others) == len(ids) - 1
    for token_id, entries in zip(ids[1:], others, strict=True):
        assert len(entries) <= 2 and entries[str(token_id)]["logprob"] <= 0
        assert entries[str(token_id)]["decoded_token"] is not None
    client.ask(upper.prompt, greedy(prompt_logprobs=1), stream=True)
    parts = [json.loads(outputs["prompt_logprobs"][0]) for outputs in client.answers()]
    assert [entries for part in parts for entries in part] == [first, *others]
    assert "prompt_logprobs" not in client.whole(upper.prompt, greedy(), **EVERYTHING)


def test_what_is_wrong_is_said(client: Client, upper: Example) -> None:
    assert "adapter 'nobody' is not known" in client.error("abc", greedy("nobody"))
    assert "max_tokens must be 0" in client.error("abc", greedy(max_tokens=-1))
    assert "prompt_logprobs must be 0 to 20" in client.error("abc", greedy(prompt_logprobs=-1))
    assert "text_input is empty" in client.error("", greedy())
    assert "n is 5000, but at most" in client.error("abc", greedy(n=5000))
    both = client.error("abc", greedy(), stream=True, exclude_input_in_output=False)
    assert "exclude_input_in_output = false" in both
    client.ask("abc", parameters={"temprature": 1})
    with pytest.raises(InferenceServerException, match="did you mean temperature"):
        client.answers()
    assert client.text(upper.prompt, greedy(), exclude_input_in_output=True) == upper.answer


def test_as_many_tokens_as_there_is_room_for(client: Client) -> None:
    sampling = {"temperature": 0, "max_tokens": 100000, "stop": ["zzz"]}
    assert client.text("abc", sampling).startswith("abc")


def test_stop_with_the_same_id_ends_it(server: TritonServer, client: Client) -> None:
    """An ensemble is not told that its client has left; a `stop` reaches all its answers."""
    endless = {"max_tokens": 900, "ignore_eos": True, "n": 2}
    client.ask("abc", endless, "endless", stream=True)
    client.take()
    assert eventually(lambda: metrics(server)["multilora_running_requests"], 2) == 2
    before = metrics(server)["multilora_generated_tokens_total"]
    status, _ = post(server, {"text_input": "abc", "stop": True, "id": "endless"}, MODEL)
    assert status == 200
    with pytest.raises(InferenceServerException, match="cancelled"):
        client.answers()
    wait_until_idle(server)
    assert metrics(server)["multilora_generated_tokens_total"] - before < 900


def test_a_client_that_leaves(server: TritonServer) -> None:
    """Its answer goes on to its end, and then everything is free."""
    client = Client(server)
    client.ask("abc", {"max_tokens": 60, "ignore_eos": True}, stream=True)
    client.take()
    client.client.stop_stream(cancel_requests=True)
    client.client.close()
    wait_until_idle(server)


def test_the_folder_may_have_any_name(tmp_path: Path, upper: Example) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    engine = REPOSITORY / "model_repository" / "multilora_llm"
    (repository / engine.name).symlink_to(engine)
    shutil.copytree(engine.parent / MODEL, repository / "vllm_opt")
    with TritonServer(DEMO_SETTINGS, model_repository=repository) as server:
        server.wait_ready(timeout=120)
        client = Client(server, "vllm_opt")
        assert client.text(upper.prompt, greedy()) == upper.prompt + upper.answer
        client.client.close()
