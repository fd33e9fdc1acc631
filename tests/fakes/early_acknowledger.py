"""The control of the kill tests: acknowledges when the message is in memory, commits afterwards, as most bridges do.

`python early_acknowledger.py PORT DATABASE`: persistent session, QoS 1, a row for each message. Must lose.
"""

from __future__ import annotations

import queue
import sqlite3
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

COMMIT_SECONDS = 0.005  # an eMMC card


def main(port: int, database: str) -> None:
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    connection = sqlite3.connect(database, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS event (payload BLOB)")
    connection.commit()
    pause = threading.Event()

    def write() -> None:
        while True:
            connection.execute("INSERT INTO event VALUES (?)", (waiting.get(),))
            pause.wait(COMMIT_SECONDS)
            connection.commit()

    threading.Thread(target=write, daemon=True).start()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="control", clean_session=False, protocol=mqtt.MQTTv311)

    def on_connect(*_: object) -> None:
        client.subscribe("frigate/reviews", qos=1)

    client.on_connect = on_connect
    client.on_message = lambda _client, _userdata, message: waiting.put(bytes(message.payload))
    client.connect("127.0.0.1", port)
    client.loop_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
