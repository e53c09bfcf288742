"""Passes bytes between a SuperNode and the SuperLink, until an upload is to stop in the middle."""

import contextlib
import socket
import threading

_CHUNK = 1 << 14


class StallingProxy:
    """Listens on 127.0.0.1; once `arm`ed, it stops passing uploads on after so many bytes.

    Attributes:
        port: where a SuperNode connects to.
        stalled: set when an upload hangs in the middle.
    """

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.target = 0
        self.stalled = threading.Event()
        self._left = None
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()

    def arm(self, size):
        """Let so many more bytes of uploads through."""
        with self._lock:
            self._left = size

    def disarm(self):
        with self._lock:
            self._left = None

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                node, _ = self._listener.accept()
                try:
                    link = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    node.close()
                    continue
                for pair in ((node, link, True), (link, node, False)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source, sink, upload):
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(_CHUNK):
                if upload and not self._lets(len(data)):
                    self.stalled.set()
                    # The node is killed while it waits: its end of the connection closes then.
                    while source.recv(_CHUNK):
                        pass
                    return
                sink.sendall(data)

    def _lets(self, size):
        with self._lock:
            if self._left is None:
                return True
            self._left -= size
            return self._left > 0
