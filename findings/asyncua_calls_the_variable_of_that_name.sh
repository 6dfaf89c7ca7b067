#!/usr/bin/env bash
# asyncua 2.1.0: an object may hold a variable and a method of one BrowseName (the server takes both without a word).
# `call_method("2:reset")`, documented to take the "browse name of child method", calls whichever was added first: with the
# variable first the server answers BadNothingToDo, and the method is only reached by its NodeId; with the method first,
# `get_child("2:reset").read_value()` raises BadAttributeIdInvalid although the variable is there.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q asyncua==2.1.0
"$dir/venv/bin/python" - <<'PY'
import asyncio
import logging
import socket

from asyncua import Client, Server, ua, uamethod
from asyncua.ua.uaerrors import BadAttributeIdInvalid, BadNothingToDo

logging.disable(logging.CRITICAL)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    url = f"opc.tcp://127.0.0.1:{free.getsockname()[1]}/"


@uamethod
def reset(parent: ua.NodeId) -> int:
    return 7


async def main() -> None:
    server = Server()
    await server.init()
    server.set_endpoint(url)
    space = await server.register_namespace("urn:line")
    objects = server.nodes.objects
    variable_first = await objects.add_object(space, "variable first")
    await variable_first.add_variable(space, "reset", 0)
    method = await variable_first.add_method(space, "reset", reset, [], [ua.VariantType.Int64])
    method_first = await objects.add_object(space, "method first")
    await method_first.add_method(space, "reset", reset, [], [ua.VariantType.Int64])
    await method_first.add_variable(space, "reset", 0)
    async with server, Client(url) as client:
        one, other = client.get_node(variable_first.nodeid), client.get_node(method_first.nodeid)
        name = f"{space}:reset"
        try:
            await one.call_method(name)
            raise SystemExit("changed: the method is found")
        except BadNothingToDo as error:
            print("variable first, by name:", error)
        print("variable first, by NodeId:", await one.call_method(method.nodeid))
        print("method first, by name:", await other.call_method(name))
        try:
            await (await other.get_child(name)).read_value()
            raise SystemExit("changed: the variable is found")
        except BadAttributeIdInvalid as error:
            print("method first, read_value():", error)


asyncio.run(main())
PY
