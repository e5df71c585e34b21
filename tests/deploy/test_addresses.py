"""The addresses that tests take: of processes side by side, and beside labs."""

import subprocess
import sys

from deploy.lab.addresses import SLOTS
from tests.support.addresses import free_address, free_block

CHOOSE = """
from tests.support.addresses import free_address, free_block
print(*(free_address() for _ in range(600)), free_block() + ".1", flush=True)
input()
"""


def test_processes_that_choose_at_the_same_time_never_choose_the_same() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", CHOOSE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    chosen = [address for process in processes if process.stdout for address in process.stdout.readline().split()]
    for process in processes:
        process.communicate("\n")
    assert len(chosen) == len(set(chosen)) == 4 * 601


def test_nothing_is_given_twice_nor_to_a_lab() -> None:
    chosen = [*(free_address() for _ in range(300)), free_block(), free_block()]
    assert len(chosen) == len(set(chosen))
    assert not {int(one.split(".")[1]) for one in chosen} & set(SLOTS)
