"""What does not fit is known before it is tried."""

from benchmarks.room import UNKNOWN, available_bytes, lack


def test_the_tighter_of_machine_and_container_counts(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  16000 kB\nMemAvailable:   9000 kB\n")
    assert available_bytes(meminfo, tmp_path / "none") == 9000 * 1024
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("1200000\n")
    assert available_bytes(meminfo, tmp_path) == 3_800_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, tmp_path) == 9000 * 1024
    assert available_bytes(tmp_path / "none", tmp_path / "none") == UNKNOWN


def test_this_machine_has_some_memory():
    assert available_bytes() > 1 << 20


def test_the_reason_names_both_numbers():
    assert lack(2_000_000_000, 2_000_000_000) == ""
    assert lack(2_500_000_000, 2_000_000_000) == "left out: needs 2.5 GB, 2.0 GB are free"
