"""An end that is announced by whoever knows of it."""

from __future__ import annotations

import os
import signal
import threading
import time

from vla_serve.host.ending import Ending


def test_who_waits_later_is_told_too():
    ending = Ending()
    announcing = threading.Thread(target=ending.announce)
    announcing.start()
    ending.wait()
    ending.wait()
    announcing.join()


def test_no_signal_is_lost_however_close_to_the_wait_it_comes():
    endings = [Ending() for _ in range(2000)]
    current, go = [endings[0]], threading.Semaphore(0)

    def send() -> None:
        for i in range(len(endings)):
            go.acquire()
            at = time.perf_counter() + 1e-6 * (i % 60)
            while time.perf_counter() < at:
                pass
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: current[0].announce())
    sending = threading.Thread(target=send)
    sending.start()
    try:
        for ending in endings:
            current[0] = ending
            go.release()
            ending.wait()
        sending.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
