"""What is asked of the kernel: whole writes, files that nobody else opens, refusals that are heard."""

from __future__ import annotations

import fcntl
import os

import pytest

from headrace.store import kernel


@pytest.mark.parametrize("data", [b"", b"0123456789", memoryview(b"0123456789")], ids=["nothing", "bytes", "view"])
def test_all_is_written_however_little_one_write_takes(
    data: bytes | memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_WRITE_MOST", 3)
    fd = kernel.create_file("test")
    kernel.write(fd, data, 5)
    assert os.pread(fd, 100, 0) == (b"\0" * 5 + data if data else b"")
    os.close(fd)


def test_a_file_may_be_sealed_and_is_its_users_alone() -> None:
    fd = kernel.create_file("test")
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    assert "memfd:test" in os.readlink(f"/proc/self/fd/{fd}")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 1)
    os.close(fd)


def test_what_the_kernel_does_not_have_is_an_error() -> None:
    with pytest.raises(OSError, match=r"prctl\(12345\): Invalid argument"):
        kernel.prctl(12345, 0)
