"""What each call of the local API does: from a request to an answer, on the device's store.

`openapi.json` beside this file describes the same calls for people and tools; a test holds the two together.
"""

import hmac
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from types import MappingProxyType

from broker.errors import (
    DataError,
    DiskFullError,
    InUseError,
    NothingYetError,
    ParameterError,
    PFedRecError,
    UnknownItemError,
)
from edge.api.choice import MAX_CHOICE_BYTES, OPTIONS, Choice
from edge.api.jsonbody import read_json
from edge.api.listens import MAX_SUBMISSION_BYTES, read_submission
from edge.api.messages import Head, HttpError, Request, Response
from edge.config import DeviceConfig
from edge.facts import device_facts
from edge.interaction import read_interaction
from edge.recommendation import recommend
from edge.scorer import Scorer, make_scorer
from edge.slots import Slots
from edge.store import DeviceStore, Model

_LOG = logging.getLogger(__name__)

MAX_INTERACTIONS = 1_000
MAX_INTERACTIONS_BYTES = 1_000_000

_STATUS_OF: Mapping[type[PFedRecError], int] = MappingProxyType(
    {
        ParameterError: 400,
        DataError: 400,
        UnknownItemError: 400,
        NothingYetError: 503,
        InUseError: 503,
        DiskFullError: 507,
        PFedRecError: 500,
    }
)
"""The nearest class among an error's ancestors decides; what may pass is 503, so that senders try again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Endpoint:
    answer: Callable[[Request], Response]
    open: bool = False
    max_body_bytes: int = 0
    parameters: frozenset[str] = frozenset()


class Endpoints:
    """The calls, by method and path.

    Parameters
    ----------
    store : DeviceStore
        Of its own: one thread alone works on it.
    token : str
        What who does not come through the socket file must know.
    newest : callable
        Gives the newest table, which may be in memory only.
    """

    def __init__(
        self,
        config: DeviceConfig,
        store: DeviceStore,
        token: str,
        newest: Callable[[], Model | None] = lambda: None,
    ) -> None:
        self._newest = newest
        self._config = config
        self._store = store
        self._token = token.encode()
        self._rule = config.item_rule
        self._calls: Mapping[tuple[str, str], _Endpoint] = {
            ("GET", "/openapi.json"): _Endpoint(answer=self._description, open=True),
            ("GET", "/v1/status"): _Endpoint(answer=self._status),
            ("GET", "/v1/recommendations"): _Endpoint(answer=self._recommendations, parameters=OPTIONS),
            ("POST", "/v1/recommendations"): _Endpoint(
                answer=self._recommendations, max_body_bytes=MAX_CHOICE_BYTES
            ),
            ("POST", "/v1/interactions"): _Endpoint(
                answer=self._record, max_body_bytes=MAX_INTERACTIONS_BYTES
            ),
            ("GET", "/1/validate-token"): _Endpoint(
                answer=self._validate_token, open=True, parameters=frozenset({"token"})
            ),
            ("POST", "/1/submit-listens"): _Endpoint(
                answer=self._submit_listens, max_body_bytes=MAX_SUBMISSION_BYTES
            ),
        }

    @property
    def calls(self) -> set[tuple[str, str]]:
        """Methods and paths."""
        return set(self._calls)

    def admit(self, head: Head, *, trusted: bool) -> None:
        """Decide about a request before its body is read.

        Parameters
        ----------
        trusted : bool
            Whether the way it came shows already that it may.

        Raises
        ------
        HttpError
        """
        endpoint = self._endpoint(head)
        if not (trusted or endpoint.open):
            self._check_token(head.headers.get("authorization", ""))
        if head.method == "POST" and "content-length" not in head.headers:
            raise HttpError(411, "send the body with its Content-Length")
        if head.content_length > endpoint.max_body_bytes:
            most = f"{endpoint.max_body_bytes} bytes" if endpoint.max_body_bytes else "no body at all"
            raise HttpError(413, f"Payload too large. This call takes {most}.")
        unknown = sorted(head.parameters.keys() - endpoint.parameters)
        if unknown:
            raise HttpError(400, f"this call has no parameter {unknown[0][:40]!r}")

    def answer(self, request: Request) -> Response:
        """Answer a request that was admitted; whatever goes wrong is an answer, too."""
        try:
            return self._endpoint(request.head).answer(request)
        except HttpError as error:
            return Response.of_error(error)
        except PFedRecError as error:
            status = next(_STATUS_OF[kind] for kind in type(error).__mro__ if kind in _STATUS_OF)
            if status >= 500 and not isinstance(error, NothingYetError):
                _LOG.warning("the local API: %s", error)
            return Response.of_error(HttpError(status, str(error)))
        except Exception:  # noqa: BLE001 - the last resort: the device goes on, and the caller gets a sentence
            _LOG.exception("a call of the local API failed")
            return Response.of_error(HttpError(500, "an error that this project does not know; see the log"))

    def _endpoint(self, head: Head) -> _Endpoint:
        method = "GET" if head.method == "HEAD" else head.method
        found = self._calls.get((method, head.path))
        if found is not None:
            return found
        allowed = sorted(method for method, path in self._calls if path == head.path)
        if allowed:
            raise HttpError(405, f"this call takes {' or '.join(allowed)}", {"Allow": ", ".join(allowed)})
        raise HttpError(404, "there is no such call; GET /openapi.json lists them")

    def _check_token(self, header: str) -> None:
        ask = {"WWW-Authenticate": "Token"}
        if not header:
            raise HttpError(401, "You need to provide an Authorization header.", ask)
        scheme, _, token = header.partition(" ")
        if scheme.lower() not in ("token", "bearer") or not token:
            raise HttpError(401, "Provided Authorization header is invalid.", ask)
        if not self._is_token(token):
            raise HttpError(401, "Invalid authorization token.", ask)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.strip().encode(), self._token)

    def _description(self, _request: Request) -> Response:
        return Response(status=200, body=description())

    def _status(self, _request: Request) -> Response:
        return Response.of(device_facts(self._config, self._store, running=True))

    def _recommendations(self, request: Request) -> Response:
        if request.head.method == "POST":
            choice = Choice.of_document(read_json(request.body))
        else:
            choice = Choice.of_parameters(request.head.parameters)
        found = recommend(
            self._store,
            self._scorer,
            choice.top,
            exclude_seen=choice.exclude_seen,
            among=choice.among,
            explain=choice.explain,
            in_use=self._newest(),
        )
        return Response.of(asdict(found))

    @cached_property
    def _scorer(self) -> Scorer:
        # TFLite would add 12 MB to a process that stays; the other one takes as long and gives the same.
        choice = self._config.scorer_choice
        model = Slots(self._store.path.parent).model
        return make_scorer("numpy" if choice == "auto" else choice, model)

    def _record(self, request: Request) -> Response:
        document = read_json(request.body)
        listed = document.get("interactions") if isinstance(document, dict) and len(document) == 1 else None
        if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_INTERACTIONS:
            raise ParameterError(
                f'the body must be {{"interactions": [...]}} with 1 to {MAX_INTERACTIONS} interactions'
            )
        now = time.time()
        found = [read_interaction(each, now) for each in listed]
        # Before they are recorded: what fails afterwards would look as if nothing had been.
        waiting = self._store.unknown_items(list(dict.fromkeys(each.item for each in found)))
        n_new = self._store.record_once([(each.item, each.at, each.identity) for each in found])
        return Response.of({"recorded": n_new, "known_before": len(found) - n_new, "waiting_items": waiting})

    def _validate_token(self, request: Request) -> Response:
        scheme, _, token = request.head.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "token":
            token = request.head.parameters.get("token", "")
        if not token:
            raise HttpError(400, "You need to provide an Authorization token.")
        if not self._is_token(token):
            return Response.of({"code": 200, "message": "Token invalid.", "valid": False})
        user = self._config.device_id
        return Response.of({"code": 200, "message": "Token valid.", "valid": True, "user_name": user})

    def _submit_listens(self, request: Request) -> Response:
        document = read_json(request.body)
        listens = read_submission(document, len(request.body), self._rule, time.time())
        if listens:
            self._store.record_once([(each.item, float(each.at), each.identity) for each in listens])
        return Response.of({"status": "ok"})


def description() -> bytes:
    """Give the OpenAPI description of the calls."""
    return resources.files("edge.api").joinpath("openapi.json").read_bytes()
