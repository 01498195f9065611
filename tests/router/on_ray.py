"""Two replicas on Ray Serve, by the example's deployment file: `cargo xtask router --ray` builds `nv` and runs this.

NV is the program, EXAMPLES the folder of the deployment file. Ray runs on this machine alone, with a home of its own.
"""

import os
import signal
import sys
import tempfile
import time
import unittest
from pathlib import Path

EXAMPLES = os.environ["EXAMPLES"]
HOME = tempfile.TemporaryDirectory()
os.environ.update(HOME=HOME.name, RAY_USAGE_STATS_ENABLED="0")
sys.path.insert(0, EXAMPLES)

import ray
from ray import serve

import ray_serve
from fleet import Load, ask, free_port, get, leave, wait

# By this name the processes of this test are known.
MODEL = f"on-ray-{os.getpid()}"
OPTIONS = {"nv": os.environ["NV"], "threads": "1", "kv_cache_memory": "64MiB", "served_model_name": MODEL}


def processes() -> list[int]:
    """Of `nv`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--served-model-name={MODEL}".encode() in arguments:
            found.append(int(path.parent.name))
    return sorted(found)


class OnRay(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        runtime_env = {"env_vars": {"PYTHONPATH": EXAMPLES}}
        ray.init(num_cpus=2, include_dashboard=False, runtime_env=runtime_env, logging_level="warning", log_to_driver=False)
        cls.addClassCleanup(ray.shutdown)
        port = free_port()
        cls.address = f"http://127.0.0.1:{port}"
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        cls.addClassCleanup(serve.shutdown)

    def setUp(self):
        self.deploy(2)

    def deploy(self, num_replicas: int) -> None:
        serve.run(ray_serve.app({**OPTIONS, "num_replicas": str(num_replicas)}))

    def test_one_is_killed_and_the_load_goes_on(self):
        before = processes()
        self.assertEqual(len(before), 2)
        with Load(self.address) as load:
            load.wait_for(20)
            moment = time.monotonic()
            os.kill(before[0], signal.SIGKILL)
            load.wait_for(40)
            # Ray asks every ten seconds how a replica is, and believes it the third time.
            wait("it is not started anew", lambda: len(processes()) == 2 and processes() != before, 90)
            later = time.monotonic()
            load.wait_for(20)
        self.assertTrue(all(answer.end > moment for answer in load.answers if answer.error))
        # Until Ray knows, what it gives to the dead one gets an error at once, and the other one goes on.
        while_dead = [answer for answer in load.answers if moment < answer.start and answer.end < later]
        self.assertGreater(len([answer for answer in while_dead if not answer.error]), 20)
        self.assertEqual([answer for answer in load.answers if answer.start > later and answer.error], [])

    def test_one_is_taken_away_and_nothing_is_lost(self):
        with Load(self.address) as load:
            load.wait_for(20)
            self.deploy(1)
            wait("it does not end", lambda: len(processes()) == 1, 60)
            load.wait_for(20)
        self.assertEqual([answer for answer in load.answers if answer.error], [])

    def test_who_goes_away_ends_what_they_asked_for(self):
        self.deploy(1)
        wait("there are two", lambda: len(processes()) == 1, 60)
        leave(self.address, 0, 900)
        wait("it goes on", lambda: "vllm:num_requests_running{" in (page := get(self.address, "/metrics")[1])
             and all(line.endswith(" 0") for line in page.splitlines() if line.startswith("vllm:num_requests_running")))
        self.assertIsNone(ask(self.address, 0, "", True, 4).error)


if __name__ == "__main__":
    unittest.main(verbosity=2)
