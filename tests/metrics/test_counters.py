import shutil
import sys

import pytest

from edgeopt.metrics import counters
from edgeopt.metrics.counters import parse_perf_stat, read_counters

COUNTED = """\
# started on Mon Jan  5 10:00:00 2026

4123456,,cycles:u,1203847,100.00,,
8246912,,instructions:u,1203847,100.00,2.00,insn per cycle
1250,,cache-misses:u,602000,50.00,5.120,of all cache refs
1.52,msec,task-clock:u,1520000,100.00,0.912,CPUs utilized
"""
REFUSED = """\
<not supported>,,cycles,0,100.00,,
<not counted>,,cache-misses,0,0.00,,
"""
needs_perf = pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")


def test_counted_events_are_read_with_unit_and_share():
    table = parse_perf_stat(COUNTED).set_index("event")
    assert table["value"]["cycles:u"] == 4_123_456
    assert table["value"]["instructions:u"] == 8_246_912
    assert table["unit"]["task-clock:u"] == "msec"
    assert table["value"]["task-clock:u"] == 1.52
    assert table["running_share"]["cache-misses:u"] == 0.5
    assert (table["status"] == "measured").all()


def test_what_the_host_does_not_count_is_nan_with_a_reason():
    table = parse_perf_stat(REFUSED)
    assert table["value"].isna().all()
    assert list(table["status"]) == [
        "unavailable: perf says <not supported> for cycles on this host",
        "unavailable: perf says <not counted> for cache-misses on this host",
    ]


def test_what_is_not_perf_output_is_refused():
    with pytest.raises(ValueError, match="not a line of 'perf stat -x,': 'hello'"):
        parse_perf_stat("hello")


def test_without_perf_every_event_says_so(monkeypatch):
    monkeypatch.setattr(counters.shutil, "which", lambda _: None)
    table = read_counters(lambda: None)
    assert list(table["event"]) == list(counters.EVENTS)
    assert table["value"].isna().all()
    assert table["status"].str.startswith("unavailable: perf is not installed").all()


def fake_perf(folder, monkeypatch, body):
    script = folder / "perf"
    script.write_text(f"#!{sys.executable}\nimport os, signal, sys\n{body}")
    script.chmod(0o755)
    monkeypatch.setattr(counters.shutil, "which", lambda _: str(script))


OUTPUT = "out = sys.argv[sys.argv.index('-o') + 1]\n"


def test_a_callable_runs_between_enable_and_disable(tmp_path, monkeypatch):
    body = OUTPUT + (
        "ctl, ack = sys.argv[sys.argv.index('--control') + 1][3:].split(',')\n"
        "with open(int(ctl)) as orders, open(int(ack), 'w') as answers:\n"
        "    for expected in ('enable', 'disable'):\n"
        "        assert orders.readline().strip() == expected\n"
        "        answers.write('ack\\n'); answers.flush()\n"
        f"    open(out, 'w').write({COUNTED!r})\n"
        "signal.sigwait([signal.SIGINT])\n"
    )
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
    fake_perf(tmp_path, monkeypatch, blocked + body)
    calls = []
    table = read_counters(lambda: calls.append(1))
    assert calls == [1]
    assert table.equals(parse_perf_stat(COUNTED))


def test_a_refusal_of_perf_is_the_reason(tmp_path, monkeypatch):
    body = "sys.exit('Access to performance monitoring is limited')\n"
    fake_perf(tmp_path, monkeypatch, body)
    table = read_counters(lambda: None)
    assert table["status"][0] == "unavailable: Access to performance monitoring is limited"


@needs_perf
def test_the_real_perf_counts_or_says_why_not():
    table = read_counters(lambda: sum(range(1000)))
    assert len(table) == len(counters.EVENTS)
    measured = table["status"] == "measured"
    assert (measured | table["status"].str.startswith("unavailable:")).all()
    assert (measured == table["value"].notna()).all()
