"""Clients who ask on and on, as many as the server takes requests or many times more: each is
answered rightly, or refused with a word of when to come again."""

import random
import time

from torture.findings import Round, Unexplained, WrongAnswer


def overload(round_: Round, clients: int) -> None:
    server = round_.server

    def act(rng: random.Random) -> None:
        example = rng.choice(server.examples)
        answer = server.ask(example, example.adapter_id, seconds=120.0)
        if answer.status == 200:
            text = answer.json()["generated_text"]
            if text != example.answer:
                raise WrongAnswer(f"{text!r}, not {example}")
        elif answer.is_refusal and not answer.problem:
            time.sleep(int(answer.headers["retry-after"]) * rng.uniform(1, 2))
        else:
            raise Unexplained(str(answer))

    round_.repeat(clients, act)
