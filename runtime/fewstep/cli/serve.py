"""``fewstep serve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.common import (
    BackendOption,
    DeviceOption,
    ThreadsOption,
    out,
    say_notes,
    serve_module,
)
from fewstep.runtime.errors import RequestError

if TYPE_CHECKING:
    from fewstep.server.models import Models

_PORT = 8000


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
            "429. [the time of a full batch]",
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

    The first line says where. SIGTERM and Ctrl-C finish what runs and refuse the rest.
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
    openings = [
        Opening(bundle, precision=each, **how)  # type: ignore[arg-type]
        for bundle in map(Bundle.read, dict.fromkeys(bundles))
        for each in dict.fromkeys(precision or ["auto"])
    ]
    service = run.Service(openings, access, max_wait_s=max_wait, ready=_say_ready)
    with run.listening(host, port) as listener:
        out.print(f"listening on {run.address_of(host, listener)}", highlight=False, markup=False)
        service.run(listener)


def _say_ready(models: Models) -> None:
    """Say what is open, and on what it runs."""
    for name, worker in models.items():
        generator = worker.generator
        if generator is None:
            continue
        say_notes(generator)
        how = f"{generator.backend} in {generator.precision} on {generator.device.name}"
        out.print(f"ready: {name} ({how})", highlight=False, markup=False, soft_wrap=True)
