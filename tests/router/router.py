"""Two replicas behind vLLM's router: `cargo xtask router` builds `nv` and runs this.

NV is the program. The replicas serve the demo checkpoint; each test has its own, and a router of its own.
"""

import os
import signal
import threading
import time
import unittest

from fleet import PREFIXES, Load, Replica, Router, ask, get, leave, wait


class TwoReplicas(unittest.TestCase):
    def setUp(self):
        replicas = [Replica(os.environ["NV"]) for _ in range(2)]
        for replica in replicas:
            self.addCleanup(replica.close)
        self.router = Router(replicas)
        self.addCleanup(self.router.close)
        # The router gives a beginning that is new to whoever has least to do: while the first is busy, that is the second.
        busy = threading.Thread(target=ask, args=(self.router.address, 0, "", True, 300))
        busy.start()
        wait("nobody is busy", lambda: any(replica.metric("num_requests_running") for replica in replicas))
        self.assertIsNone(ask(self.router.address, 1, "", False, 1).error)
        busy.join()
        replicas.sort(key=lambda replica: replica.metric("generation_tokens_total"), reverse=True)
        # The replica that has computed each of the prefixes.
        self.homes = replicas
        self.assertEqual([home.metric("generation_tokens_total") for home in self.homes], [300, 1])

    def check_answers(self, load: Load, moment: float) -> None:
        """Those for the second prefix, which did not change its replica, and those after `moment` came whole."""
        for answer in load.answers:
            if answer.prefix == 1 or answer.start > moment:
                self.assertIsNone(answer.error)
        for prefix in range(len(PREFIXES)):
            later = [answer for answer in load.answers if answer.prefix == prefix and answer.start > moment]
            self.assertGreater(len(later), 5, "the load does not go on")
            self.assertTrue(all(answer.text for answer in later))

    def keep_busy(self, load: Load) -> None:
        """Waits until the load runs, and both replicas have more than one request of it."""
        load.wait_for(20)
        for home in self.homes:
            wait("a replica idles", lambda: home.metric("num_requests_running") > 1)

    def test_prompts_that_begin_alike_go_to_one_replica(self):
        def computed():
            return [home.metric("prefix_cache_queries_total") for home in self.homes]

        for prefix, home in enumerate(self.homes):
            for turn in range(6):
                before, hits = computed(), home.metric("prefix_cache_hits_total")
                answer = ask(self.router.address, prefix, f"and in the year {turn}", turn % 2 == 0, 4)
                self.assertIsNone(answer.error)
                after, other = computed(), 1 - prefix
                self.assertGreater(after[prefix], before[prefix])
                self.assertEqual(after[other], before[other])
                # Two blocks and more of the prefix were there.
                self.assertGreaterEqual(home.metric("prefix_cache_hits_total") - hits, 64)

    def test_one_is_killed_and_the_load_goes_on(self):
        dead = self.homes[0]
        with Load(self.router.address) as load:
            self.keep_busy(load)
            moment = time.monotonic()
            dead.signal(signal.SIGKILL)
            load.wait_for(60)
            wait("the router counts on it", lambda: self.router.healthy() == [self.homes[1].address])
        self.check_answers(load, moment)
        # Lost are streams that had begun: the router asks the other replica for all else.
        lost = [answer for answer in load.answers if answer.error]
        self.assertTrue(all(answer.was_under_way(moment) and answer.stream for answer in lost), lost)
        self.assertLessEqual(len(lost), load.num_clients // 2)
        self.assertEqual(dead.end(), -signal.SIGKILL)

        # Started anew it is taken back.
        dead.start()
        wait("it is not taken back", lambda: len(self.router.healthy()) == 2)

    def test_one_is_told_to_end_and_nothing_is_lost(self):
        leaving = self.homes[0]
        with Load(self.router.address) as load:
            self.keep_busy(load)
            moment = time.monotonic()
            leaving.signal(signal.SIGTERM)
            self.assertEqual(leaving.end(), 0)
            load.wait_for(60)
            wait("the router counts on it", lambda: self.router.healthy() == [self.homes[1].address])
        self.check_answers(load, moment)
        self.assertEqual([answer for answer in load.answers if answer.error], [])
        self.assertTrue(any(answer.prefix == 0 and answer.was_under_way(moment) for answer in load.answers))

    def test_who_goes_away_behind_the_router_frees_what_they_held(self):
        leave(self.router.address, 0, 900)
        wait("it goes on", lambda: self.homes[0].metric("num_requests_running") == 0)
        self.assertEqual(self.homes[0].metric("kv_cache_usage_perc"), 0)
        self.assertLess(self.homes[0].metric("generation_tokens_total"), 300 + 900)

    def test_what_is_asked_for_and_what_is_refused_passes_the_router(self):
        self.assertEqual(get(self.router.address, "/v1/models")[0], 200)
        answer = ask(self.router.address, 0, "", False, 4, top_k=-5)
        self.assertRegex(answer.error, "400.*field `top_k`: expected -1 or more")


if __name__ == "__main__":
    unittest.main(verbosity=2)
