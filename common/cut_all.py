"""Many image files to their chips, over as many processes as pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

from common.cut_process import CutProcess
from common.cutter import Cut, Cutter

CHUNK = 16
WORTH_A_POOL = 128  # starting processes costs as long as finding about this many faces


def cut_all(
    cutter: Cutter, paths: Sequence[Path], workers: int, *, apart: bool = False
) -> Iterator[Cut]:
    """What a cutter makes of each file, in order, over processes where that pays.

    dlib holds the interpreter's lock, so threads alone do not help. With `apart`, or with several
    workers, a picture may end its process and is then a fault like any other.
    """
    few = len(paths) < WORTH_A_POOL
    if not apart and (workers == 1 or few):
        yield from map(cutter, paths)
        return
    if not paths:
        return
    processes: list[CutProcess] = []
    own = local()

    def cut(path: Path) -> Cut:
        if not hasattr(own, "process"):
            own.process = CutProcess(cutter)
            processes.append(own.process)
        process: CutProcess = own.process
        return process.cut(path)

    pool = ThreadPoolExecutor(1 if few else workers)
    try:
        yield from pool.map(cut, paths)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        pool.shutdown()
        for process in processes:
            process.close()
