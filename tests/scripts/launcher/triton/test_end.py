"""What a Triton server that ends waits for, by lines and figures as they really are."""

from launcher.triton.end import is_idle, waits_for

SERVER = 'I1126 04:31:25.3 12 server.cc:305] "Waiting for in-flight requests to complete."'
HELD = 'I1126 04:31:25.3 12 http_server.cc:248] "Timeout 30: Found 6 HTTP service connections"'
UNLOADING = (
    'I1126 04:34:35.4 16 server.cc:345] "Timeout 29: Found 3 live models and 0 in-flight '
    'non-inference requests"'
)
METRICS = """# TYPE multilora_running_requests gauge
multilora_running_requests{model="multilora_llm",version="1"} %s
multilora_waiting_requests{model="multilora_llm",version="1"} %s
"""


def test_what_it_waits_for() -> None:
    held = "clients to close their connections to Triton's HTTP port (6)"
    assert waits_for(["Signal (15) received.", HELD]) == held
    assert waits_for([HELD, UNLOADING, "unloaded"]) == "models to be unloaded"
    assert waits_for([SERVER]) == waits_for([]) == "running requests to end"


def test_what_runs_or_waits_is_not_idle() -> None:
    assert is_idle(METRICS % (0, 0))
    assert not is_idle(METRICS % (0, 2))
    assert not is_idle(METRICS % (1, 0))
    assert not is_idle("")
