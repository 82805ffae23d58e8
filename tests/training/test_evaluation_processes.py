"""Metrics are the same to the last digit, however many processes share an evaluation."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import evaluation_process
import pytest
import tiny

HELPERS = Path(tiny.__file__).parent


def metrics(folder, processes, kinds=evaluation_process.KINDS):
    """The output of evaluations of some kinds in a number of processes, with four devices together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | tiny.flags(4 // processes) | {"PYTHONPATH": str(HELPERS)}
    arguments = [sys.executable, evaluation_process.__file__, folder, processes]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([*map(str, [*arguments, number]), address, *kinds], env=environment, **pipes)
        for number in range(processes)
    ]
    printed = [tiny.finish(process) for process in started]
    return json.loads(next(line for line in printed[0].splitlines() if line.startswith("{")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    evaluation_process.write_documents(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return metrics(folder, 1)


@pytest.mark.slow
def test_two_processes_report_what_one_does(folder, alone):
    assert metrics(folder, 2) == alone


@pytest.mark.slow
def test_four_processes_with_one_device_each_report_what_one_does(folder, alone):
    """Of texts that are generated, and of pairs, whose rows are compared with those of all processes."""
    kinds = ("translation", "pairs")
    assert metrics(folder, 4, kinds) == {kind: alone[kind] for kind in kinds}


@pytest.mark.slow
def test_the_metrics_of_one_process_have_something_to_compare(alone):
    validation = {kind: results["validation"] for kind, results in alone.items()}
    assert 0 < validation["translation"]["chrf"] < 100 and validation["translation"]["rouge_1"] > 0
    assert 0 < validation["answers"]["f1"] < 100
    assert 0 < abs(validation["numbers"]["spearman"]) < 1
    assert 0 < validation["tags"]["entity_f1"] < 1
    assert 0 < validation["summaries"]["rouge_1"] < validation["summaries"]["oracle_rouge_1"]
    assert 0 < validation["classes"]["macro_f1"] < 1
    assert 0 < validation["pairs"]["image_to_text_5"] < 1 and 0 < validation["pairs"]["text_to_image_5"] < 1
    assert {results["first_rows"]["loss"] != results["validation"]["loss"] for results in alone.values()} == {True}
