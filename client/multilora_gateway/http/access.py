"""Who may do what: API keys for inference, some limited to adapters, and the admin's key.

Laws: keys are compared in constant time, an empty key is never valid, and every valid key may use
the base model.
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fastapi import Request

from multilora_api.adapter_names import MERGED_PREFIX
from multilora_gateway.api_keys import key_and_patterns
from multilora_gateway.errors import GatewayError
from multilora_gateway.settings import Settings

_CHALLENGE = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True)
class Caller:
    """Who sent a request. With `patterns` None the caller may use any adapter."""

    patterns: tuple[str, ...] | None = None

    def may_use(self, adapter_id: str) -> bool:
        if self.patterns is None or not adapter_id:
            return True
        patterns = self.patterns
        if _is_merge(adapter_id):  # the pattern "m*" does not cover merges of other callers
            patterns = tuple(each for each in patterns if _is_merge(each))
        if ".." in adapter_id.replace("\\", "/").split("/"):  # may match one folder, name another
            return False
        return any(fnmatchcase(adapter_id, pattern) for pattern in patterns)

    def check(self, adapter_id: str) -> None:
        """GatewayError 403 for an adapter that the caller may not use."""
        if not self.may_use(adapter_id):
            limits = ", ".join(self.patterns or ()) or "the base model"
            hint = "; send merged_adapters instead" if _is_merge(adapter_id) else ""
            raise GatewayError(
                403, "forbidden",
                f"this API key may not use adapter {adapter_id!r}; it is limited to {limits}{hint}",
                code="adapter_forbidden",
            )  # fmt: skip


class Access:
    """Checks the keys of requests against those of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._admin_key = settings.admin_key.encode(errors="surrogateescape")
        self._keys = [_parse(key) for key in settings.api_keys]

    @property
    def has_admin(self) -> bool:
        return bool(self._admin_key)

    def caller(self, authorization: str | None) -> Caller:
        """The caller by an Authorization header; GatewayError 401 when a key is needed and the
        header has no valid one."""
        if not self._keys:
            return Caller()
        given = _bearer(authorization)
        found: Caller | None = None
        for key, caller in self._keys:  # compares all keys: the time must not tell which one fits
            if hmac.compare_digest(key, given) and found is None:
                found = caller
        if hmac.compare_digest(self._admin_key, given):
            found = Caller()
        if found is None or not given:
            raise GatewayError(
                401, "unauthorized",
                "a valid API key is needed; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key", headers=_CHALLENGE,
            )  # fmt: skip
        return found

    def check_admin(self, authorization: str | None) -> None:
        """GatewayError 401 or 403 unless the Authorization header has the admin's key."""
        if not self._admin_key:
            raise GatewayError(
                403, "forbidden",
                "adapters cannot be changed here: start the server with --admin-key",
            )  # fmt: skip
        if not hmac.compare_digest(self._admin_key, _bearer(authorization)):
            raise GatewayError(
                401, "unauthorized",
                "the admin key is needed; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key", headers=_CHALLENGE,
            )  # fmt: skip


async def inference(request: Request) -> Caller:
    """Dependency of every route that generates."""
    access: Access = request.app.state.gateway.access
    caller = access.caller(_authorization(request))
    request.state.caller = caller
    return caller


async def admin(request: Request) -> None:
    """Dependency of every route that changes adapters."""
    access: Access = request.app.state.gateway.access
    access.check_admin(request.headers.get("authorization"))
    request.state.caller = Caller()


def _authorization(request: Request) -> str | None:
    """The header of that name, or what it would be for the key in Anthropic's x-api-key."""
    given, key = (request.headers.get(name) for name in ("authorization", "x-api-key"))
    return f"Bearer {key}" if given is None and key else given


def guessed_for(request: Request, names: Sequence[str]) -> list[str]:
    """The adapter names of `names` that the sender of the request may know."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return [name for name in names if caller and caller.may_use(name)]


def _is_merge(adapter_id: str) -> bool:
    return adapter_id.startswith(MERGED_PREFIX)


def _bearer(authorization: str | None) -> bytes:
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _parse(entry: str) -> tuple[bytes, Caller]:
    key, patterns = key_and_patterns(entry)
    return key.encode(errors="surrogateescape"), Caller(patterns)
