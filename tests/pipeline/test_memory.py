"""What is done about memory that is free and does not go back."""

import mmap

import pytest

from ldcvae.training import heap as memory


def test_the_heap_is_trimmed_when_it_has_grown_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([900.0, 800.0, 1700.0, 1900.0, 1000.0, 1900.0, 2100.0, 850.0])
    trims = []
    monkeypatch.setattr(memory, "_resident_mb", lambda: next(sizes))
    monkeypatch.setattr(memory, "_trim", lambda: trims.append(1))
    monkeypatch.setattr(memory, "_level", None)
    # First looks at 900, 800 and 1700 MB; 1900 is too much, 1000 are left; 1900 is not too much then, 2100 is.
    assert [memory.give_back_excess(1000.0) for _ in range(6)] == [False, False, False, True, False, True]
    assert len(trims) == 2


@pytest.mark.skipif(memory._resident_mb() == 0.0, reason="needs /proc")
def test_resident_memory_is_that_of_this_process() -> None:
    before = memory._resident_mb()
    with mmap.mmap(-1, 200_000_000) as block:  # pages of its own, whatever the heap has free
        block[:: mmap.PAGESIZE] = bytes(len(range(0, len(block), mmap.PAGESIZE)))
        assert 190.0 < memory._resident_mb() - before < 300.0
