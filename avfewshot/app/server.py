"""The web server: routes of the page and of the JSON API, over one :class:`~avfewshot.app.workspace.Workspace`."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import mimetypes
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, File, Form, Header, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from avfewshot.app.clips import Entry
from avfewshot.app.guard import Guard
from avfewshot.app.workspace import Workspace
from avfewshot.errors import AvfsError
from avfewshot.labels import LabelSet
from avfewshot.media.discover import VIDEO_SUFFIXES
from avfewshot.media.thumbnails import jpeg
from avfewshot.reports.html import clip_data, component, environment
from avfewshot.reports.writers import JsonWriter, Summary
from avfewshot.text import printable
from avfewshot.version import __version__

_STATIC = Path(__file__).resolve().parent / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
UPLOADS = ("/classify", "/api/clips")
MOST_TEMPORARY = 4  # dropped clips that wait in the temporary folder take so many times the bytes of one upload at most
UPLOADS_AT_ONCE = 4
_POLL_SECONDS = 0.2
_BEAT_SECONDS = 10

Tab = Annotated[str, Header(alias="X-Tab", max_length=64, description="Which tab asks: each has its own undo.")]


class Annotation(BaseModel):
    """What clips hold, or some seconds of them."""

    ids: list[int] = Field(min_length=1, max_length=10_000, description="Numbers of clips.")
    label: str | None = Field(None, max_length=500, description="A class, `none`, or null to take it back.")
    start: int | None = Field(None, ge=0, description="First second; without: the whole clip.")
    end: int | None = Field(None, ge=1, description="Second to stop before.")
    wording: str | None = Field(None, max_length=2000, description="Makes a new class, read by the text branches so.")


class Class(BaseModel):
    """A label to choose from."""

    name: str = Field(min_length=1, max_length=500)
    wording: str = Field("", max_length=2000)


class Saving(BaseModel):
    """How a run is to be called."""

    name: str = Field(max_length=80)


def create_app(
    work: Workspace, *, hosts: Collection[str] | None, token: str | None = None, max_upload: int = 1 << 30
) -> FastAPI:
    """The application; for `hosts` and `token` see :class:`~avfewshot.app.guard.Guard`."""
    app = FastAPI(
        title="avfs serve", version=__version__, docs_url=None, redoc_url=None,
        description="Classify clips by sight and sound. `POST /classify` is for programs; the rest serves the page.",
    )  # fmt: skip
    guarded = {"hosts": hosts, "token": token, "uploads": UPLOADS, "most_upload": max_upload}
    app.add_middleware(Guard, **guarded)
    decoding, uploading = threading.Semaphore(2), threading.BoundedSemaphore(UPLOADS_AT_ONCE)

    @app.exception_handler(AvfsError)
    def misuse(request: Request, error: AvfsError) -> JSONResponse:
        return JSONResponse({"error": " ".join(filter(None, (printable(error.message), error.hint)))}, 422)

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()]
        return JSONResponse({"error": "; ".join(faults)}, 422)

    @app.exception_handler(OSError)
    def unwritten(request: Request, error: OSError) -> JSONResponse:
        return JSONResponse({"error": f"Nothing was changed: {error.strerror or error}."}, 507)

    def entry_of(number: int) -> Entry:
        try:
            return work.clips.entry(number)
        except KeyError:
            raise HTTPException(404, f"There is no clip {number}.") from None

    # ------------------------------------------------------------------------------------------ files of the page

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return _static("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name in ("clips.js", "clips.css"):
            return Response(component(name), media_type=_TYPES[Path(name).suffix])
        if name not in ("app.js", "app.css"):
            raise HTTPException(404, "There is no such file.")
        return _static(name)

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return HTMLResponse(environment().get_template("api.html.j2").render(schema=app.openapi()))

    # ------------------------------------------------------------------------------------------ for programs

    @app.post("/classify", summary="Classify clips", response_class=Response)
    def classify(
        files: Annotated[list[UploadFile] | None, File(description="Clips, up to 100.")] = None,
        paths: Annotated[list[str] | None, Form(description="Clips on the server, below its folders.")] = None,
        labels: Annotated[
            list[str] | None, Form(description="`label` or `label: wording`; without: those of the page.")
        ] = None,
        segments: Annotated[bool, Form(description="Also say what each second holds.")] = False,
    ) -> Response:
        """The answer is that of `avfs zeroshot --format json`; files that cannot be read are in `failed`."""
        if not (files or paths) or len(files or ()) > 100 or len(paths or ()) > 1000:
            raise HTTPException(422, "Give 1 to 100 files, or 1 to 1,000 paths.")
        own = work.clips.classes or None
        asked = LabelSet.from_texts(labels) if labels else own and LabelSet.from_wordings(own)
        if asked is None:
            raise HTTPException(422, "Which labels? Send `labels`.")
        if not uploading.acquire(blocking=False):
            raise HTTPException(503, "Too many uploads at once; try again.", {"Retry-After": "1"})
        try:
            with tempfile.TemporaryDirectory(dir=work.clips.temporary) as folder:
                clips, names = [], []
                for number, upload in enumerate(files or ()):
                    suffix = Path(upload.filename or "").suffix.lower()
                    target = Path(folder) / f"{number:03d}{suffix if suffix.isascii() and len(suffix) < 9 else ''}"
                    _keep(upload, target)
                    clips.append(target)
                    names.append(upload.filename or target.name)
                for path in paths or ():
                    clips.append(work.clips.readable(Entry(-1, work.clips.folder / path, path)))
                    names.append(path)
                with work.worker.compute:
                    results = work.classifier.classify(clips, asked, segments=segments)
                    run = work.classifier.info(asked)
        finally:
            uploading.release()
        stream = io.StringIO()
        writer = JsonWriter(stream, run, segments=segments)
        for result, name in zip(results, names, strict=True):
            object.__setattr__(result, "path", name)
            writer.add(result)
        writer.end(Summary(len(results), 0, len(results), 0.0))
        return Response(stream.getvalue(), media_type="application/json")

    # ------------------------------------------------------------------------------------------ for the page

    @app.get("/api/state", summary="Everything but the clips")
    def state() -> dict[str, Any]:
        return work.state()

    @app.get("/api/events", summary="The state at every change, as server-sent events")
    async def events(request: Request) -> StreamingResponse:
        async def changes() -> AsyncIterator[str]:
            sent, silent = 0, 0.0
            while not work.worker.closing.is_set() and not await request.is_disconnected():
                if work.clips.version != sent:
                    state = await asyncio.to_thread(work.state)
                    sent, silent = state["version"], 0.0
                    yield f"data: {json.dumps(state)}\n\n"
                elif silent > _BEAT_SECONDS:
                    silent = 0.0
                    yield ": still here\n\n"
                await asyncio.sleep(_POLL_SECONDS)
                silent += _POLL_SECONDS

        return StreamingResponse(changes(), media_type="text/event-stream")

    @app.get("/api/clips", summary="Clips that changed after a version")
    def clips(since: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        version = work.clips.version  # before the rows: what changes meanwhile is sent twice rather than never
        return {"version": version, "clips": work.rows(since)}

    @app.post("/api/clips", summary="Upload clips")
    def upload(files: Annotated[list[UploadFile], File(description="Clips.")]) -> dict[str, Any]:
        used = sum(path.stat().st_size for path in work.clips.temporary.rglob("*") if path.is_file())
        size = sum(upload.size or 0 for upload in files)
        if used + size > MOST_TEMPORARY * max_upload:
            raise HTTPException(507, "There is no more room for dropped clips; label some, or start again.")
        ids, errors = [], []
        for upload in files:
            handle, name = tempfile.mkstemp(dir=work.clips.temporary)
            os.close(handle)
            try:
                _keep(upload, Path(name))
                ids.append(work.clips.add(Path(name), upload.filename or "clip").number)
            except AvfsError as error:
                errors.append(printable(error.message))
            finally:
                Path(name).unlink(missing_ok=True)
        return {"ids": ids, "errors": errors}

    @app.get("/api/clips/{number}", summary="Everything about a clip")
    def clip(number: int) -> dict[str, Any]:
        entry_of(number)
        entry, result = work.result(number)
        answer = {"id": number, "path": printable(entry.name), "error": entry.error, "mark": asdict(entry.mark)}
        answer["video"] = entry.path.suffix.lower() in VIDEO_SUFFIXES
        if result is not None:
            answer |= {"labels": list(result.scores), **clip_data(result, topk=len(result.scores))}
        return answer

    @app.get("/api/clips/{number}/media", summary="Its file", response_class=FileResponse)
    def media(number: int) -> FileResponse:
        path = work.clips.readable(entry_of(number))
        kind = mimetypes.guess_type(path.name)[0] or ""
        kind = kind if kind.startswith(("video/", "audio/")) else "application/octet-stream"
        return FileResponse(path, media_type=kind)

    @app.get("/api/clips/{number}/frame", summary="A frame of a second, as JPEG", response_class=Response)
    def frame(
        number: int, second: Annotated[int, Query(ge=0)] = 0, size: Annotated[int, Query(ge=32, le=512)] = 128
    ) -> Response:
        path = work.clips.readable(entry_of(number))
        content = work.small_picture(path, second, size)
        if content is None:
            with decoding:
                content = _frame(str(path), path.stat().st_mtime_ns, second, size)
        if content is None:
            raise HTTPException(404, "There is no picture.")
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @app.post("/api/label", summary="Correct clips or seconds, or add a class from clips")
    def label(annotation: Annotation, tab: Tab = "") -> dict[str, Any]:
        for number in annotation.ids:
            entry_of(number)
        if (annotation.start is None) != (annotation.end is None):
            raise HTTPException(422, "Give start and end, or neither.")
        work.changes.annotate(
            tab, annotation.ids, annotation.label, annotation.start, annotation.end, annotation.wording
        )
        return {"version": work.clips.version}

    @app.put("/api/classes", summary="Replace the classes")
    def classes(classes: Annotated[list[Class], Field(max_length=5000)], tab: Tab = "") -> dict[str, Any]:
        if len({single.name for single in classes}) < len(classes):
            raise HTTPException(422, "A label occurs twice.")
        work.changes.set_classes(tab, {single.name: single.wording or single.name for single in classes})
        return {"version": work.clips.version}

    @app.post("/api/undo", summary="Take back this tab's last change")
    def undo(tab: Tab = "") -> dict[str, Any]:
        return {"undone": work.changes.undo(tab), "version": work.clips.version}

    @app.post("/api/learn", summary="Learn from all labels")
    def learn() -> dict[str, Any]:
        why = "Too little to learn from: label clips of two classes (or of one and `none`)."
        facts = work.worker.learn()
        return {"learnt": facts, "why": None if facts else why}

    @app.get("/api/suggest", summary="Which clips to label next")
    def suggest(count: Annotated[int, Query(ge=1, le=200)] = 12) -> dict[str, Any]:
        return {"ids": work.suggest(count)}

    @app.get("/api/find", summary="Clips by what is seen or heard in them")
    def find(
        q: Annotated[str, Query(min_length=1, max_length=500)],
        by: Literal["sight", "sound", "both"] = "both",
        top: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> dict[str, Any]:
        return {"found": work.find(q, by, top)}

    @app.post("/api/save", summary="Save what was learnt as a run")
    def save(saving: Saving) -> dict[str, Any]:
        return {"run": str(work.save(saving.name))}

    return app


def _static(name: str) -> Response:
    return Response((_STATIC / name).read_text(encoding="utf-8"), media_type=_TYPES[Path(name).suffix])


def _keep(upload: UploadFile, target: Path) -> None:
    with open(target, "wb") as stream:
        shutil.copyfileobj(upload.file, stream, 1 << 20)


@functools.lru_cache(maxsize=4000)
def _frame(path: str, changed: int, second: int, size: int) -> bytes | None:
    """A frame as JPEG, decoded in a process that may die; None where there is none. `changed` is for the cache."""
    from avfewshot.media.stream import IsolatedReader

    try:
        with IsolatedReader(path, frame_size=size, modality="visual") as reader:
            if not reader.info.has_video or second >= reader.info.num_segments:
                return None
            frames = reader.read(second, second + 1).frames
    except AvfsError:
        return None
    return None if frames is None else jpeg(frames[0].permute(1, 2, 0).numpy())


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, work: Workspace) -> None:
        super().__init__(config)
        self._work = work

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._work.worker.closing.set()  # ends the event streams, which uvicorn would wait for
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # it has been dealt with: this is how a server ends

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._work.worker.closing.is_set()


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections; raises OSError where the address is in use or not of this machine."""
    [(family, *_, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


def run(app: FastAPI, work: Workspace, listening: socket.socket) -> None:
    """Serve until a signal comes, or the workspace closes."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3, lifespan="off"
    )
    work.worker.start()
    try:
        _Server(config, work).run(sockets=[listening])
    finally:
        work.close()
