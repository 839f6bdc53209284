"""One look at the run store for all who watch: a thread that lives as long as somebody does.

However many people look at a run, the store is asked once for what is new; a viewer who does not take what
it is told is dropped, and comes back with the cursor of what it had.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterable

from fastapi import HTTPException

from thalweg.desk.run_source import RunSource
from thalweg.desk.run_viewer import Viewer

__all__ = ["Lookout"]

EVERY = 0.1  # seconds between two questions whether the file has changed, which cost microseconds
SURE = 2.0  # seconds after which it is looked at in any case: a clock that ticks slowly may hide a change
TROUBLED = 1.0  # seconds until a store that could not be read is tried again
VIEWERS = 1000


class Lookout:
    """Looks at the store while there are viewers, and tells them.

    Attributes:
        looks: how often the store was asked for what is new, for one or for many.
    """

    def __init__(self, source: RunSource) -> None:
        self.source = source
        self.looks = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._viewers: set[Viewer] = set()
        self._thread: threading.Thread | None = None

    def check_room(self) -> None:
        """Whether one more can watch.

        Raises:
            HTTPException: 503, there are too many.
        """
        if len(self.viewers()) >= VIEWERS:
            raise HTTPException(503, f"{VIEWERS} people are watching already", {"Retry-After": "30"})

    def join(self, viewer: Viewer) -> None:
        """Tell a viewer from now on."""
        with self._lock:
            self._viewers.add(viewer)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="thalweg lookout", daemon=True)
                self._thread.start()
        self._wake.set()

    def leave(self, viewer: Viewer) -> None:
        """Tell it no more; leaving again does nothing."""
        with self._lock:
            self._viewers.discard(viewer)
        self._wake.set()

    def viewers(self) -> list[Viewer]:
        """Who is watching now; those that were too slow or have gone are not."""
        with self._lock:
            self._viewers = {one for one in self._viewers if one.there}
            return list(self._viewers)

    def _wanted(self) -> bool:
        with self._lock:
            if not any(one.there for one in self._viewers):
                self._thread = None
                return False
            return True

    def _run(self) -> None:
        stamp: Hashable = None
        looked = 0.0
        while self._wanted():
            # Taken before looking: what is written meanwhile is found the next time.
            now, at = self.source.stamp, time.monotonic()
            sure = at - looked > SURE
            groups: dict[Hashable, list[Viewer]] = {}
            for viewer in self.viewers():
                if viewer.due(sure or now != stamp):
                    groups.setdefault(viewer.position, []).append(viewer)
            stamp, looked = now, at if sure else looked
            self._pause(EVERY if not groups or self._tell(groups.values()) else TROUBLED)

    def _tell(self, groups: Iterable[list[Viewer]]) -> bool:
        """The same look for all who are at the same place; whether the store could be read.

        It is opened for this only: somebody who always read would keep a run from tidying up at its end.
        """
        try:
            with self.source.open() as store:
                for those in groups:
                    self.looks += 1
                    found = those[0].look(store, self.source, those)
                    for viewer in those:
                        viewer.trouble("")
                        viewer.told(found)
                        viewer.hand_over()
            return True
        except HTTPException as error:
            if error.status_code == 404:  # there is no store yet: no trouble, but nothing to tell either
                return True
            why = str(error.detail)
        except Exception as error:
            # A mistake of ours must not leave everybody waiting without a word.
            why = f"the runs cannot be watched: {error!r}"
            self.source.damaged(why)
        for viewer in self.viewers():
            viewer.trouble(why)
        return False

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._wake.wait(seconds)
        self._wake.clear()
        # A viewer that has just come is told at once, but those who come and go do not make it spin.
        time.sleep(min(0.01, max(0.0, until - time.monotonic())))
