from __future__ import annotations

import urllib.error

import pytest

from loadtest.load.metrics import Scrape, Watch, batch_sizes, between, parse

TEXT = """# HELP process_cpu_seconds_total CPU
process_cpu_seconds_total 12.5
kairos_batch_rows_bucket{model="a",version="1",le="1.0"} 3.0
kairos_batch_rows_bucket{le="4.0",model="a"} 5.0
kairos_batch_rows_bucket{model="b",le="4.0"} 2.0
kairos_batch_rows_bucket{model="a",le="+Inf"} 5.0
kairos_batch_rows_count{model="a"} 5.0
"""


def test_the_wanted_figures_are_found() -> None:
    found = parse(TEXT, 7.0)
    assert found == Scrape(7.0, 12.5, {1.0: 3.0, 4.0: 7.0, float("inf"): 5.0})
    assert parse("other 1\n", 0.0) == Scrape(0.0, 0.0, {})


def test_batches_are_those_in_between() -> None:
    before = Scrape(0.0, 0.0, {1.0: 10.0, 4.0: 12.0, 8.0: 12.0})
    after = Scrape(1.0, 0.0, {1.0: 13.0, 4.0: 20.0, 8.0: 20.0})
    assert batch_sizes(before, after) == {"1": 3.0, "4": 5.0}


def test_cores_are_cpu_over_time() -> None:
    scrapes = [Scrape(100.0, 1.0, {}), Scrape(102.0, 2.0, {}), Scrape(102.0, 2.0, {}), Scrape(103.0, 4.0, {})]
    found = between(scrapes, 100.0)
    assert found["cpu_s"] == 3.0
    assert found["cores"] == [[1.0, 0.5], [2.5, 2.0]]


def test_a_look_that_fails_is_left_out_but_the_first_is_needed() -> None:
    looks = iter([Scrape(0.0, 1.0, {}), Scrape(1.0, 3.0, {})])
    watch = Watch("http://x", every_s=60.0, look=lambda _: next(looks))
    watch.start()
    assert watch.stop()["cpu_s"] == 2.0
    with pytest.raises(urllib.error.URLError):
        Watch("http://127.0.0.1:1/metrics").start()
