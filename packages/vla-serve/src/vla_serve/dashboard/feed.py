"""The server's side of the page: starts its process, and answers what it asks over a pipe.

The page is a process so that nothing of it (a web library, browsers that look on) shares an interpreter with
the model's thread, and so that whatever happens to it, serving goes on.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec
from multiprocessing.connection import Connection

import numpy as np
from vla_core.errors import UserError

from vla_serve.dashboard.recorder import Recorder
from vla_serve.host.listen import LOCAL, why_not
from vla_serve.observability.standing import Standing

log = logging.getLogger("vla_serve.server")


class Dashboard:
    """The page of one server. :meth:`start` it, :meth:`stop` it.

    Raises:
        UserError: the extra is not installed.
    """

    def __init__(self, standing: Standing) -> None:
        if find_spec("nicegui") is None:
            raise UserError("dashboard: 'nicegui' is not installed: pip install 'vla-serve[dashboard]'")
        self.recorder = Recorder(standing)
        self.url = ""
        """With the token that the page asks for; empty before :meth:`start`."""
        self._stopping = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, port: int) -> int:
        """Begin on a port of this machine alone, 0 for a free one; the port.

        Raises:
            UserError: the port is taken.
        """
        # Bound here: a port that is taken is known at once, and a browser that is early waits.
        listener = socket.socket()
        ours, theirs = socket.socketpair()
        with listener, theirs:
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((LOCAL, port))
                listener.listen()
            except OSError as error:
                ours.close()
                raise UserError(why_not(LOCAL, LOCAL, port, error, "dashboard")) from None
            bound = int(listener.getsockname()[1])
            files = (listener.fileno(), theirs.fileno())
            self._process = subprocess.Popen(
                # -P: no module of the directory that the server was started in
                [sys.executable, "-P", "-m", "vla_serve.dashboard", *map(str, files)],
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a signal to the terminal's group is the server's to act on
            )
        self._link = Connection(ours.detach())
        token = secrets.token_urlsafe(24)
        self._link.send_bytes(token.encode())
        self.url = f"http://127.0.0.1:{bound}/?token={token}"
        self._thread = threading.Thread(target=self._answer, name="vla-dashboard", daemon=True)
        self._thread.start()
        return bound

    def _answer(self) -> None:
        try:
            while True:
                asked = json.loads(self._link.recv_bytes())
                report, pictures = self.recorder.report(asked["sessions"], asked["contracts"])
                self._link.send_bytes(json.dumps(report).encode())
                for picture in pictures:  # as they are: the page has the time to pack them
                    self._link.send_bytes(np.ascontiguousarray(picture).data.cast("B"))
        except (EOFError, OSError):  # its end of the pipe is closed: it stops, or died
            self.recorder.off()
            if not self._stopping:
                log.warning("the dashboard ended; serving goes on without it")

    def stop(self) -> None:
        """End the page's process. It has nothing to save, and browsers that would keep it."""
        if self._process is None:
            return
        self._stopping = True
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._link.close()
