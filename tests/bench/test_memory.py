"""What counts as the memory of a process tree, in processes that hold nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

SIZE_MB = 64
HEAD = f"""
import json, mmap, os, tempfile
from headrace.store.segments import Arena
from headrace_dask.bench.process import tree_pss_bytes

data = memoryview(bytes({SIZE_MB} << 20))
def show(): print(json.dumps((tree_pss_bytes(os.getpid()) - before) >> 20))
before = tree_pss_bytes(os.getpid())
"""


def megabytes(source: str) -> list[int]:
    """What the program shows, in the order in which it does: by how much its memory has grown since it began."""
    command = [sys.executable, "-c", HEAD + source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def is_about(grown_mb: int, size_mb: int) -> bool:
    return abs(grown_mb - size_mb) <= 8


def test_a_result_that_nobody_has_read_counts() -> None:
    grown, freed = megabytes("""
arena = Arena(1)
start, _, _ = arena.put([data])
show()
arena.free(start)
arena.trim()
show()
""")
    assert is_about(grown, SIZE_MB)
    assert is_about(freed, 0)


def test_shared_memory_counts_once_however_many_have_it_open_or_mapped() -> None:
    shown = megabytes("""
arena = Arena(1)
arena.put([data])
leave, stay = os.pipe()
if not os.fork():
    os.close(stay)
    os._exit(len(os.read(leave, 1)))
show()
mapped = mmap.mmap(arena.fd, len(data), prot=mmap.PROT_READ)
sum(mapped[::mmap.PAGESIZE])
show()
second = mmap.mmap(arena.fd, len(data), prot=mmap.PROT_READ)
sum(second[::mmap.PAGESIZE])
show()
os.close(stay)
os.wait()
""")
    assert len(shown) == 3
    assert all(is_about(grown, SIZE_MB) for grown in shown), shown


def test_what_a_child_has_written_and_nobody_read_counts() -> None:
    (grown,) = megabytes("""
(leave, stay), (told, tell) = os.pipe(), os.pipe()
if not os.fork():
    os.close(stay)
    arena = Arena(1)
    arena.put([data])
    os.write(tell, b"!")
    os._exit(len(os.read(leave, 1)))
os.read(told, 1)
show()
os.close(stay)
os.wait()
""")
    assert is_about(grown, SIZE_MB)


def test_files_in_dev_shm_count_likewise_with_and_without_a_name() -> None:
    shown = megabytes("""
with tempfile.NamedTemporaryFile(dir="/dev/shm") as named:
    named.write(data)
    show()
with tempfile.TemporaryFile(dir="/dev/shm") as nameless:
    nameless.write(data)
    show()
show()
""")
    assert is_about(shown[0], SIZE_MB)
    assert is_about(shown[1], SIZE_MB)
    assert is_about(shown[2], 0)


def test_memory_of_ones_own_and_files_on_disk_are_not_taken_for_shared_memory() -> None:
    shown = megabytes(f"""
own = b"x" * ({SIZE_MB} << 20)
show()
with tempfile.TemporaryFile() as file:
    file.write(data)
    show()
""")
    assert all(is_about(grown, SIZE_MB) for grown in shown), shown
