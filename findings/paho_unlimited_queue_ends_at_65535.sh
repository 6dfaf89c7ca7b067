#!/usr/bin/env bash
# paho-mqtt 2.2.0 with max_queued_messages_set(0), documented as no limit: while the broker is away the 65,536th message of QoS 1
# is refused with ERR_QUEUE_SIZE (there are 65,535 message ids). And is_published() of a message that waits raises RuntimeError
# ("not currently connected") although the message goes out, exactly once, as soon as the client connects; it still raises then.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q paho-mqtt==2.2.0 amqtt==0.11.3
cat >"$dir/program.py" <<'PY'
import asyncio
import logging
import socket
import threading
import time

import paho.mqtt.client as mqtt
from amqtt.broker import Broker

logging.disable(logging.CRITICAL)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]


def waiting_client() -> mqtt.Client:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="line", clean_session=False)
    client.max_queued_messages_set(0)
    return client


client = waiting_client()
codes = [client.publish("line/verdict", b"good", qos=1).rc for _ in range(65537)]
first = codes.index(mqtt.MQTT_ERR_QUEUE_SIZE)
print(f"message {first + 1} is refused: {mqtt.error_string(codes[first])}")
assert first == 65535, "the limit changed"

client = waiting_client()
delivered = []
client.on_publish = lambda *arguments: delivered.append(arguments[2])
waiting = client.publish("line/verdict", b"reject", qos=1)


def asks(when: str) -> None:
    try:
        print(when, "is_published():", waiting.is_published())
        raise SystemExit("changed: it no longer raises")
    except RuntimeError as error:
        print(when, "is_published() raises:", error)


asks("before the broker is there,")


async def serve() -> None:
    broker = Broker({"listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}, "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}})
    await broker.start()
    await asyncio.sleep(60)


threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
for _ in range(100):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        break
    except OSError:
        time.sleep(0.1)
client.connect("127.0.0.1", port)
client.loop_start()
for _ in range(100):
    if delivered:
        break
    time.sleep(0.1)
print("acknowledged by the broker:", delivered)
assert delivered == [waiting.mid], "the waiting message was not delivered once"
asks("after its delivery,")
client.loop_stop()
PY
"$dir/venv/bin/python" "$dir/program.py"
