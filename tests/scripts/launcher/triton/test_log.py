"""Lines as tritonserver 2.51 and the models really write them."""

from launcher.triton.log import Failure, failure, is_warning, report, stage

FAILED = (
    "E1123 01:35:52.091249 7044 model_lifecycle.cc:642] \"failed to load 'multilora_llm' version "
    '1: Internal: TritonModelException: dtype must be \\"auto\\"\\n\\nAt:\\n  /m/model.py(9): '
    'initialize\\n"'
)
LAST = "error: creating server: Internal - failed to load all models"


def test_stages() -> None:
    assert stage("I multilora.engine_parts: loading adapter sql") == "loading adapter sql"
    loading = 'I1123 01:36:42.1 7390 model_lifecycle.cc:472] "loading: tokenizer:1"'
    assert stage(loading) == "loading the Triton model tokenizer"
    loaded = "I1123 01:36:42.1 7390 model_lifecycle.cc:839] \"successfully loaded 'multilora'\""
    assert stage(loaded) == "loaded the Triton model multilora"
    assert stage("W multilora.x: y") is None
    assert stage("I multilora.memory:   KV cache   1.00 GiB") is None
    assert stage("I multilora.memory_profile: measuring") == "measuring"


def test_report_is_the_memory_and_the_engine_s_warnings() -> None:
    lines = [
        "I multilora.engine_parts: loading x",
        "I multilora.memory: GPU memory 80.00 GiB:",
        'W1123 01:35:52.0 7044 model.cc:1] "careful"',
        "W multilora.gpu_check: running on the CPU: no driver",
        "I multilora.memory:   KV cache          1.00 GiB  4096 tokens",
    ]
    assert report(lines) == [
        "GPU memory 80.00 GiB:",
        "warning: running on the CPU: no driver",
        "  KV cache          1.00 GiB  4096 tokens",
    ]


def test_failure_is_the_reason_of_the_model() -> None:
    assert failure(["noise", FAILED, LAST]) == Failure('dtype must be "auto"', told=True)
    reason = "creating server: Internal - failed to load all models"
    assert failure([LAST]) == Failure(reason, told=False)
    assert failure(["noise"]) is None


def test_what_a_model_did_not_expect_is_no_reason_to_leave_the_log_out() -> None:
    crash = FAILED.replace("TritonModelException: dtype must be", "KeyError: dtype")
    assert failure([crash, LAST]) == Failure('KeyError: dtype "auto"', told=False)


def test_only_warnings_that_matter() -> None:
    assert is_warning('W1123 01:35:52.0 7044 model.cc:1] "careful"')
    assert is_warning("E multilora.engine: a forward pass failed")
    assert not is_warning('I1123 01:35:52.0 7044 server.cc:305] "fine"')
    assert not is_warning('W1123 01:50:18.4 10527 metrics.cc:798] "DCGM unable to start"')
