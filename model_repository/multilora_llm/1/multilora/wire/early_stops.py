"""EarlyStops: `stop` for requests that have not reached the engine yet. Pure.

Law: whoever is stopped between `begin` and `end` hears of it from `end`; after that the engine can
be told.
"""

import threading


class EarlyStops:
    """Any thread. `key` is whatever stands for one request while its chat is rendered or its
    grammar compiled; `client_id` is what its client called it, maybe nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._client_ids: dict[object, str] = {}
        self._stopped: set[object] = set()

    def begin(self, key: object, client_id: str) -> None:
        with self._lock:
            self._client_ids[key] = client_id

    def stop(self, client_id: str) -> None:
        """Remember it for all requests of that name that are on their way."""
        with self._lock:
            named = (key for key, name in self._client_ids.items() if name == client_id)
            self._stopped.update(named)

    def is_stopped(self, key: object) -> bool:
        """Whether it need not go on."""
        with self._lock:
            return key in self._stopped

    def end(self, key: object) -> bool:
        """It has arrived, or never will: whether it was stopped. Asked twice: False."""
        with self._lock:
            self._client_ids.pop(key, None)
            stopped = key in self._stopped
            self._stopped.discard(key)
            return stopped
