"""``fewstep serve``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from fewstep.cli.common import (
    BackendOption,
    DeviceOption,
    ThreadsOption,
    out,
    quiet,
    say_more,
    say_note,
    say_notes,
    serve_module,
)
from fewstep.runtime.errors import RequestError

if TYPE_CHECKING:
    from fewstep.server.models import Models

_PORT = 8000

Given = TypeVar("Given")


def serve_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders, one or more.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's needs a key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = _PORT,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="As of generate; with several every bundle is a model in each. [auto]"),
    ] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Images that are made together, of several requests.")
    ] = 8,
    max_wait: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds that a request may have to wait, by estimate, before it is answered with "
            "429. [at most one full batch; two for other settings and sizes]",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="FEWSTEP_API_KEY",
            help="Key that requests must have; better in the environment, as FEWSTEP_API_KEY.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of pages elsewhere that may ask, as https://example.org."),
    ] = None,
) -> None:
    """Serve bundles over HTTP: a web page, OpenAI's images API and AUTOMATIC1111's.

    The first line says where. SIGTERM and Ctrl-C finish what runs and refuse the rest. -v says a
    line for every request.
    """
    run = serve_module()
    from fewstep.runtime.bundle import Bundle
    from fewstep.server.guard import Access
    from fewstep.server.worker import Opening

    access = Access(host, api_key, tuple(cors_origin or ()))
    if not access.is_local and access.key is None:
        raise RequestError(
            f"whoever reaches {host} could use the server: pass --api-key, or FEWSTEP_API_KEY in "
            "the environment"
        )
    how = {"backend": backend, "device": device, "threads": threads, "max_batch": max_batch}
    precisions = _once(precision or ["auto"], str)
    openings = [
        Opening(bundle, precision=each, **how)  # type: ignore[arg-type]
        for bundle in map(Bundle.read, _once(bundles, Path.resolve))
        for each in precisions
    ]
    for opening in openings:
        opening.check()
    service = run.Service(
        openings,
        access,
        max_wait_s=max_wait,
        ready=_say_ready,
        ending=_say_ending,
        log=_say_request,
    )
    with run.listening(host, port) as listener:
        out.print(f"listening on {run.address_of(host, listener)}", highlight=False, markup=False)
        service.run(listener)


def _once(given: list[Given], key: Callable[[Given], object]) -> list[Given]:
    """Without what is given twice, of which a note is said."""
    found: dict[object, Given] = {}
    for each in given:
        if key(each) in found:
            say_note(f"{each} is given more than once; it is served once")
        found.setdefault(key(each), each)
    return list(found.values())


def _say_ending() -> None:
    if not quiet():
        out.print("ending: what runs is finished; Ctrl-C again ends at once", highlight=False)


def _say_request(line: str, status: int) -> None:
    """Say how a request was answered: to those who asked for more, or where it is our fault."""
    say = say_note if status == 500 else say_more
    say(line)


def _say_ready(models: Models) -> None:
    """Say what is open, and on what it runs."""
    for name, worker in models.items():
        generator = worker.generator
        if generator is None:
            continue
        say_notes(generator)
        how = f"{generator.backend} in {generator.precision} on {generator.device.name}"
        out.print(f"ready: {name} ({how})", highlight=False, markup=False, soft_wrap=True)
