from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.plugins.base_plugin import FrontendMetadata, TBPlugin
from werkzeug import Request, Response

from stepguard.views.tensorboard import answers
from stepguard.views.tensorboard.store import Store

STATIC = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript", ".css": "text/css"}
MOST_BUCKETS = 4000


class StepGuardPlugin(TBPlugin):  # type: ignore[misc]
    """The tab: ``/runs``, ``/series`` and ``/events`` as JSON, and the files of the page."""

    plugin_name = "stepguard"

    def __init__(self, context: Any):
        self._store = Store(Path(context.logdir or ".").expanduser())
        if context.logdir:
            self._store.catch_up(patience=0)  # read before anyone looks: a million readings take some seconds

    def get_plugin_apps(self) -> dict[str, Any]:
        files = {f"/{path.name}": _file(path) for path in STATIC.iterdir() if path.suffix in TYPES}
        return files | {"/runs": _json(self._runs), "/series": _json(self._series), "/events": _json(self._events)}

    def is_active(self) -> bool:
        return self._store.there()

    def frontend_metadata(self) -> Any:
        return FrontendMetadata(es_module_path="/index.js", tab_name="StepGuard", disable_reload=True)

    def _runs(self, request: Request) -> dict[str, Any]:
        with self._store.runs() as runs:
            about = [answers.about(tables) for tables in runs.values()]
            return {"logdir": str(self._store.root), "read": self._store.read(), "runs": about}

    def _series(self, request: Request) -> dict[str, Any]:
        first, last = _range(request)
        buckets = min(MOST_BUCKETS, max(1, request.args.get("buckets", 1000, int)))
        with self._store.runs() as runs:
            asked = [name for name in request.args.getlist("run") if name in runs]
            return {name: answers.series(runs[name], first, last, buckets) for name in asked}

    def _events(self, request: Request) -> dict[str, Any]:
        first, last = _range(request)
        text, limit = request.args.get("text", "").lower(), request.args.get("limit", 200, int)
        with self._store.runs() as runs:
            asked = [runs[name] for name in request.args.getlist("run") if name in runs]
            return answers.events(asked, request.args.getlist("kind"), text, first, last, limit)


def _range(request: Request) -> tuple[float, float]:
    return request.args.get("from", -math.inf, float), request.args.get("to", math.inf, float)


def _json(answer: Callable[[Request], dict[str, Any]]) -> Any:
    """An application that answers with JSON, and with the reason where there is no answer."""

    @Request.application
    def app(request: Request) -> Response:
        try:
            return _response(json.dumps(answer(request), allow_nan=False), "application/json")
        except Exception as error:
            logging.getLogger("tensorboard").exception("StepGuard tab: %s failed", request.path)
            return _response(json.dumps({"error": f"{type(error).__name__}: {error}"}), "application/json", 500)

    return app


def _file(path: Path) -> Any:
    @Request.application
    def app(request: Request) -> Response:
        return _response(path.read_bytes(), TYPES[path.suffix])

    return app


def _response(body: str | bytes, content_type: str, status: int = 200) -> Response:
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return Response(body, status=status, headers=headers, content_type=f"{content_type}; charset=utf-8")
