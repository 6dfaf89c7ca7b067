"""`nnet-edge swap`: give a running line another bundle."""

from __future__ import annotations

import click

from nnet_edge.cli.options import Command
from nnet_edge.cli.view import say


@click.command("swap", cls=Command)
@click.argument("bundle")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The page of the running line.")
@click.option("--stream", "name", help="Only for this stream.")
@click.option("--token-from", help="env:NAME or file:PATH, which hold the page's token.")
def command(bundle: str, url: str, name: str | None, token_from: str | None) -> None:
    """Let a running line judge by BUNDLE, a folder below its bundle_folder, without losing a frame."""
    from nnet_edge.runtime.web.client import PageClient
    from nnet_edge.settings.secrets import read_secret

    PageClient(url, None if token_from is None else read_secret("--token-from", token_from)).swap(bundle, name)
    say(f"the line at {url} judges by {bundle}")
