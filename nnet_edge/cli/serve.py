"""`nnet-edge serve`: an inference server of one bundle or of many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.options import Command, bits_option, precision_option, runner_options, runner_settings, shown_option
from nnet_edge.cli.view import say
from nnet_edge.errors import StreamError

if TYPE_CHECKING:
    from nnet_edge.settings.serve import ServeSettings

LOOK_S = 0.5


@click.command("serve", cls=Command, example="nnet-edge serve runs/part/bundle --port 8000")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True)
@shown_option(
    "--host", metavar="HOST", default="127.0.0.1", help="Where it listens; others than this machine need --token-from."
)
@shown_option("--port", type=click.IntRange(0, 65535), metavar="PORT", default=8000, help="0: one that is free.")
@click.option(
    "--memory", metavar="SIZE", help="Of this process, at most, as 2G: the bundle used longest ago is closed."
)
@shown_option("--queue", type=click.IntRange(1, 10_000), metavar="IMAGES", default=64,
              help="That wait at most; more are refused (503).")  # fmt: skip
@shown_option("--body-limit", metavar="SIZE", default="32M", help="Of a request; larger ones are refused (413).")
@click.option("--token-from", metavar="env:NAME|file:PATH", help="What holds the token that requests must carry.")
@click.option("--name", "names", metavar="HOST", multiple=True, help="Another host name by which it is reached.")
@click.option("--threshold", type=float, metavar="SCORE", help="Above it a part is a reject (default: the bundle's).")
@shown_option("--min-area", type=float, metavar="PIXELS", default=0.0, help="Smallest region reported.")
@bits_option
@precision_option
@runner_options
def command(bundles: tuple[str, ...], **options: Any) -> None:
    """Serve BUNDLE, or NAME=BUNDLE, by HTTP: Open Inference Protocol, and pictures to /v2/models/NAME/judge.

    \b
    curl --data-binary @part.jpg http://127.0.0.1:8000/v2/models/part/judge
    """
    from nnet_edge.runtime.serve.server import InferenceServer
    from nnet_edge.runtime.stream.running import stopping_on_signals

    settings = serve_settings(bundles, options)
    server = InferenceServer(settings)
    for name in settings.bundles:
        facts = server.models.facts(name)
        say(f"{name}: threshold {facts['threshold']:.6g} on {facts['runner']} ({facts['precision']})")
    with stopping_on_signals() as stop:
        with server:
            first = f"{server.address}/v2/models/{next(iter(settings.bundles))}"
            say(f"serving at {server.address}/v2; a picture: curl --data-binary @part.jpg {first}/judge")
            while server.is_alive and not stop.wait(LOOK_S):
                pass
            if not stop.is_set():
                raise StreamError("the inference server ended by itself: its log says why")
        say("stopped: what was asked before is answered")


def serve_settings(bundles: tuple[str, ...], options: dict[str, Any]) -> ServeSettings:
    """The settings that the options stand for. Raises ConfigError, BundleError."""
    from nnet_edge.settings.serve import ServeSettings, named_bundles, parse_bytes
    from nnet_edge.settings.stream import VerdictSettings
    from nnet_edge.settings.web import WebSettings

    web = WebSettings(options["host"], options["port"], options["token_from"], names=options["names"])
    return ServeSettings(
        named_bundles(bundles), web, runner_settings(options), options["precision"],
        VerdictSettings(threshold=options["threshold"], min_area=options["min_area"]), options["bits"],
        None if options["memory"] is None else parse_bytes(options["memory"]), options["queue"],
        parse_bytes(options["body_limit"]),
    )  # fmt: skip
