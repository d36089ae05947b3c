"""Metrics: counts and durations, nothing that names or tells of anybody, and nobody else's to read."""

import re
import socket
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from sottovoce.common import monitoring
from sottovoce.common.envelope import REASONS as OF_ENVELOPES
from sottovoce.common.errors import DeploymentError
from sottovoce.common.monitoring import HOSPITAL_SECONDS, Metrics
from sottovoce.common.secagg.complaint import REASONS as OF_SUMS

NAMES = {
    "sottovoce_messages_total",
    "sottovoce_rounds_total",
    "sottovoce_attempts_total",
    "sottovoce_refused_total",
    "sottovoce_message_seconds_bucket",
    "sottovoce_message_seconds_count",
    "sottovoce_message_seconds_sum",
    "sottovoce_round_seconds_bucket",
    "sottovoce_round_seconds_count",
    "sottovoce_round_seconds_sum",
    "sottovoce_certificate_seconds_left",
}
NUMBERS = {"sottovoce_sites_enrolled", "sottovoce_sites_seen", "sottovoce_studies_running"}


def scraped(metrics: Metrics) -> dict[str, str]:
    """What a Prometheus server would get, by name and labels."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with metrics.served(port) as served:
        text = urllib.request.urlopen(f"http://127.0.0.1:{served}/metrics", timeout=60).read().decode()
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def told(metrics: Metrics) -> dict[str, str]:
    """The same without a socket."""
    text = generate_latest(metrics._registry).decode()
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_counts_and_durations_are_served() -> None:
    metrics = Metrics("coordinator")
    metrics.message("train.mask", "answered", seconds=0.25)
    metrics.message("train.mask", "answered", seconds=2)
    metrics.round("applied", seconds=2.5)
    metrics.attempt("summed")
    metrics.refused("replay")
    metrics.certificate("site", 3600)
    metrics.number("sites_seen", 4)
    found = scraped(metrics)
    assert found['sottovoce_messages_total{outcome="answered",phase="train.mask"}'] == "2.0"
    assert found['sottovoce_message_seconds_sum{phase="train.mask"}'] == "2.25"
    assert found['sottovoce_rounds_total{outcome="applied"}'] == "1.0"
    assert found['sottovoce_attempts_total{outcome="summed"}'] == "1.0"
    assert found['sottovoce_refused_total{reason="replay"}'] == "1.0"
    assert found['sottovoce_certificate_seconds_left{certificate="site"}'] == "3600.0"
    assert found["sottovoce_sites_seen"] == "4.0"


@settings(max_examples=30)
@given(st.text(), st.text(), st.text())
def test_no_text_from_outside_becomes_a_label(phase: str, outcome: str, reason: str) -> None:
    metrics = Metrics("coordinator")
    metrics.message(phase, outcome, seconds=1)
    metrics.round(outcome)
    metrics.attempt(outcome)
    metrics.refused(reason)
    values = set(re.findall(r'(?:phase|outcome|reason)="([^"]*)"', "\n".join(told(metrics))))
    assert values <= {value for allowed in monitoring._ALLOWED.values() for value in allowed}


def test_what_is_on_no_list_is_counted_as_other() -> None:
    metrics = Metrics("hospital")
    metrics.refused("patient 17 of hospital-a")
    assert told(metrics)['sottovoce_refused_total{reason="other"}'] == "1.0"


@pytest.mark.parametrize(("part", "more"), [("hospital", set()), ("coordinator", NUMBERS)])
def test_every_name_is_on_the_list(part: monitoring.Part, more: set[str]) -> None:
    metrics = Metrics(part)
    metrics.message("train", "answered", seconds=1)
    metrics.round("applied", seconds=1)
    metrics.attempt("summed")
    metrics.refused("replay")
    metrics.certificate("server", 1)
    assert {name.partition("{")[0] for name in told(metrics)} == NAMES | more


def test_every_reason_of_an_envelope_and_of_a_sum_has_its_own_count() -> None:
    assert set(OF_ENVELOPES) | set(OF_SUMS) <= set(monitoring._ALLOWED["reason"])


@settings(max_examples=30)
@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_a_hospitals_durations_tell_one_of_four_values(first: float, second: float) -> None:
    """How long training took depends on who was drawn; a sum of exact seconds would give that away at each scrape."""
    metrics = Metrics("hospital")
    metrics.message("train", "answered", seconds=first)
    one = float(told(metrics)['sottovoce_message_seconds_sum{phase="train"}'])
    assert one in HOSPITAL_SECONDS
    assert one >= min(first, HOSPITAL_SECONDS[-1])
    metrics.message("train", "answered", seconds=second)
    both = float(told(metrics)['sottovoce_message_seconds_sum{phase="train"}'])
    assert both - one in HOSPITAL_SECONDS


def test_a_coordinators_durations_are_exact() -> None:
    """The twin that must differ: without the rounding, the sum above would be this one."""
    metrics = Metrics("coordinator")
    metrics.message("train", "answered", seconds=2.5)
    assert told(metrics)['sottovoce_message_seconds_sum{phase="train"}'] == "2.5"


def test_only_this_machine_is_answered_and_only_while_it_lasts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Metrics("hospital").served(port):
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert [where for where in listening if where.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_of_0_answers_nobody_and_a_taken_one_is_one_sentence() -> None:
    with Metrics("hospital").served(0) as port:
        assert port == 0
    with socket.create_server(("127.0.0.1", 0)) as probe:
        taken = probe.getsockname()[1]
        with (
            pytest.raises(DeploymentError, match="Set another metrics_port"),
            Metrics("hospital").served(taken),
        ):
            pass
