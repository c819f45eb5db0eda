"""Seconds out of nnU-Net's logs."""

from nnunet_semisam.benchmark.training_log import epoch_seconds, start_up_seconds, training_seconds

FIRST = """
2026-01-01 10:00:00.000000: unpacking dataset...
2026-01-01 10:00:07.500000: Epoch 0
2026-01-01 10:00:17.500000: Epoch time: 10.0 s
2026-01-01 10:00:17.600000: Epoch 1
2026-01-01 10:00:30.600000: Epoch time: 13.0 s
2026-01-01 10:00:30.700000: Epoch 2
"""
SECOND = """
2026-01-02 09:00:00.000000: loading
2026-01-02 09:00:05.000000: Epoch 1
2026-01-02 09:00:17.000000: Epoch time: 12.0 s
2026-01-02 09:00:17.100000: Epoch 2
2026-01-02 09:00:28.100000: Epoch time: 11.0 s
"""


def test_a_resumed_training_counts_every_epoch_once_and_its_first_start(tmp_path):
    (tmp_path / "training_log_2026_1_2_09_00_00.txt").write_text(SECOND)
    (tmp_path / "training_log_2026_1_1_10_00_00.txt").write_text(FIRST)
    assert epoch_seconds(tmp_path) == {0: 10.0, 1: 12.0, 2: 11.0}
    assert start_up_seconds(tmp_path) == 7.5
    assert training_seconds(tmp_path) == 40.5


def test_no_log_is_no_time(tmp_path):
    assert (epoch_seconds(tmp_path), training_seconds(tmp_path)) == ({}, 0.0)
