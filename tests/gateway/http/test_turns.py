"""Many requests at once do not hold up what else the event loop has to do."""

import asyncio
import itertools
from typing import Any

from multilora_gateway.http.turns import Turns

REQUESTS = 100


async def nothing(*_: Any) -> Any:
    return None


def test_requests_begin_in_their_order_and_others_have_turns_in_between() -> None:
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        order.append(scope["path"])

    async def other() -> None:
        while len(order) < 2 * REQUESTS:
            order.append("other")
            await asyncio.sleep(0)

    async def run() -> None:
        turns = Turns(app)
        scopes = [{"type": "http", "path": str(number)} for number in range(REQUESTS)]
        await asyncio.gather(other(), *(turns(scope, nothing, nothing) for scope in scopes))

    asyncio.run(run())
    begun = [name for name in order if name != "other"]
    assert begun == [str(number) for number in range(REQUESTS)]
    places = [place for place, name in enumerate(order) if name != "other"]
    gaps = [after - before for before, after in itertools.pairwise(places)]
    assert min(gaps) > 1


def test_who_goes_while_waiting_takes_no_turn() -> None:
    begun: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["path"])

    async def run() -> None:
        turns = Turns(app)
        tasks = [
            asyncio.create_task(turns({"type": "http", "path": path}, nothing, nothing))
            for path in ("first", "gone", "last")
        ]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await turns({"type": "http", "path": "later"}, nothing, nothing)

    asyncio.run(run())
    assert begun == ["first", "last", "later"]
