"""The page in headless Chromium: `cargo xtask page` starts the servers and runs this.

NV_DEMO is the address of `nv serve` with the demo checkpoint, and without a key. NV_SCRIPTED is that of a server whose model
says what stands in <say>…</say>, again and again with <forever>; its key is "key". Screenshots go to the folder NV_SCREENSHOTS.
"""

import base64
import hashlib
import os
import re
import unittest
import urllib.request

from chromium import SHIFT, Chromium, wait

DEMO = os.environ["NV_DEMO"]
SCRIPTED = os.environ["NV_SCRIPTED"]
SCREENSHOTS = os.environ["NV_SCREENSHOTS"]

ANSWER = "document.querySelector('article.assistant:last-of-type')"
IS_DONE = f"!!{ANSWER} && !{ANSWER}.hasAttribute('aria-busy')"
# A server that has a key says so to those who have none, and the browser notes it.
REFUSED = "the server responded with a status of 401"
INVALID = "the server responded with a status of 400"


def metric(address: str, name: str) -> float:
    with urllib.request.urlopen(address + "/metrics") as page:
        for line in page.read().decode().splitlines():
            if line.startswith(f"vllm:{name}{{"):
                return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"{name} is not in the metrics")


def setUpModule():
    global browser
    browser = Chromium()
    unittest.addModuleCleanup(browser.close)


class Page(unittest.TestCase):
    address = DEMO
    # What the browser may complain of.
    expected = []

    def setUp(self):
        self.tab = browser.tab()
        self.addCleanup(self.tab.close)
        self.tab.look(1000, 800, "light")
        self.open()
        # As if nobody had been there.
        self.tab.run("localStorage.clear(); sessionStorage.clear()")
        self.open()

    def open(self):
        self.tab.go(self.address)
        self.tab.wait("document.activeElement.matches('#message, #key')")

    def tearDown(self):
        # Events that are under way come before the answer to this.
        self.tab.run("1")
        foreign = [url for url in self.tab.requests if not url.startswith((self.address + "/", "data:"))]
        self.assertEqual(foreign, [])
        self.assertGreater(len(self.tab.requests), 2)
        complaints = [text for text in self.tab.complaints if not any(part in text for part in self.expected)]
        self.assertEqual(complaints, [])

    def set(self, name, value):
        self.tab.run(f"document.getElementById('{name}').value = '{value}'")

    def ask(self, text):
        self.tab.run("document.getElementById('message').focus()")
        self.tab.write(text)
        self.tab.press("Enter")

    def answer(self):
        """The last answer, once it is complete."""
        self.tab.wait(IS_DONE)
        return self.tab.run(f"{ANSWER}.querySelector('.body').innerText")

    def note(self):
        return self.tab.run(f"{ANSWER}.querySelector('.note').textContent")

    def message(self):
        return self.tab.run("document.getElementById('message').value")

    def errors(self):
        return self.tab.run("[...document.querySelectorAll('.error')].map((box) => box.firstChild.textContent)")


class Demo(Page):
    def test_text_streams_in(self):
        self.set("max_tokens", 100)
        self.set("temperature", 0)
        # Lengths that the answer has while it comes.
        self.tab.run(f"""
            lengths = new Set();
            new MutationObserver(() => lengths.add({ANSWER}?.querySelector('.body').textContent.length))
                .observe(document.getElementById('log'), {{ childList: true, subtree: true, characterData: true }});""")
        self.ask("In the beginning")
        text = self.answer()
        # A frame may take up many tokens.
        self.assertGreater(self.tab.run("lengths.size"), 4)
        self.assertGreater(len(text), 100)
        self.assertRegex(self.note(), r"^100 tokens · [\d.]+ tok/s · first after [\d.]+ s · prompt \d+, \d+ cached · cut")
        self.assertEqual(self.tab.run("document.querySelector('article.user .body').innerText"), "In the beginning")
        self.assertEqual(self.tab.run("document.getElementById('model').textContent"), "demo")
        self.assertEqual(self.errors(), [])

        # What was said goes along, and is not computed again.
        self.ask("And God said")
        self.answer()
        prompt, cached = map(int, re.search(r"prompt (\d+), (\d+) cached", self.note()).groups())
        self.assertGreater(prompt, 100)
        self.assertGreater(cached, 64)

    def test_a_conversation_is_kept_until_it_is_cleared(self):
        self.set("max_tokens", 8)
        self.set("system", "Be brief.")
        self.ask("In the beginning")
        text = self.answer()
        self.open()
        self.assertEqual(self.answer(), text)
        self.assertEqual(self.tab.run("document.getElementById('system').value"), "Be brief.")
        self.tab.click("#clear")
        self.tab.wait("!document.querySelector('article')")
        self.open()
        self.assertFalse(self.tab.run("!!document.querySelector('article')"))
        self.assertEqual(self.tab.run("document.getElementById('max_tokens').value"), "8")

    def test_two_tabs_have_a_conversation_each(self):
        self.set("max_tokens", 4)
        self.ask("In the beginning")
        text = self.answer()
        first, self.tab = self.tab, browser.tab()
        # The second goes on from what was said last, and then its own way.
        self.open()
        self.assertEqual(self.answer(), text)
        self.tab.click("#clear")
        self.ask("And God said")
        other = self.answer()
        self.open()
        self.assertEqual(self.answer(), other)
        self.assertEqual(self.tab.run("document.querySelectorAll('article').length"), 2)
        self.tab.close()
        self.tab = first
        self.open()
        self.assertEqual(self.answer(), text)
        self.assertEqual(self.tab.run("document.querySelector('article.user .body').innerText"), "In the beginning")
        # What is kept for the next tab is what was kept last.
        self.ask("And")
        self.answer()
        third = browser.tab()
        self.tab = third
        self.open()
        self.assertEqual(self.tab.run("document.querySelectorAll('article').length"), 4)
        self.tab.close()
        self.tab = first

    def test_on_a_phone_enter_begins_a_line_and_the_button_sends(self):
        self.tab.look(360, 640, "light")
        self.tab.touch(True)
        self.open()
        self.set("max_tokens", 4)
        self.tab.run("document.getElementById('message').focus()")
        self.tab.write("one")
        self.tab.press("Enter")
        self.tab.write("two")
        self.assertEqual(self.tab.run("document.getElementById('message').value"), "one\ntwo")
        self.tab.click("#send")
        self.answer()
        self.assertEqual(self.tab.run("document.querySelector('article.user .body').innerText"), "one\ntwo")
        self.tab.touch(False)

    def test_shift_enter_begins_a_line(self):
        self.set("max_tokens", 4)
        self.tab.write("one")
        self.tab.press("Enter", SHIFT)
        self.tab.write("two")
        self.assertEqual(self.tab.run("document.getElementById('message').value"), "one\ntwo")
        self.tab.press("Enter")
        self.answer()
        self.assertEqual(self.tab.run("document.querySelector('article.user .body').innerText"), "one\ntwo")

    def test_keys_reach_everything_that_has_a_label(self):
        self.tab.run("document.getElementById('settings').open = true; document.getElementById('clear').focus()")
        reached = ["clear"]
        for _ in range(30):
            self.tab.press("Tab")
            focus = "document.activeElement"
            if self.tab.run(f"{focus} === document.body || {focus}.id === 'clear'"):
                break
            reached.append(self.tab.run(f"{focus}.id || {focus}.tagName"))
            self.assertNotEqual(self.tab.run(f"getComputedStyle({focus}).outlineStyle"), "none", reached)
        names = ["clear", "SUMMARY", "system", "temperature", "top_p", "top_k", "max_tokens", "seed", "thinking", "log", "message"]
        self.assertEqual(reached, [*names, "send"])
        self.assertEqual(self.tab.run("[...document.querySelectorAll('input, select, textarea')].filter((e) => !e.labels.length)"), [])

    def test_the_page_may_do_what_it_needs_and_no_more(self):
        with urllib.request.urlopen(self.address) as page:
            html = page.read().decode()
            self.assertIn("frame-ancestors 'none'", page.headers["content-security-policy"])
        # Each says what it should be, if it doesn't fit.
        for tag in ["style", "script"]:
            text = re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            self.assertIn(f"{tag}-src 'sha256-{digest}'", html)


class Scripted(Page):
    address = SCRIPTED
    expected = [REFUSED, INVALID]

    def open(self):
        super().open()
        if self.tab.run("!sessionStorage.getItem('nano-vllm-rs')"):
            self.tab.wait("document.activeElement.id === 'key'")
            self.tab.write("key")
            self.tab.press("Enter")
        self.tab.wait("document.getElementById('model').textContent === 'scripted'")

    def test_a_wrong_key_is_asked_for_again(self):
        self.tab.run("sessionStorage.setItem('nano-vllm-rs', 'wrong')")
        self.ask("<say>Hi</say>")
        self.tab.wait("document.activeElement.id === 'key' && !!document.querySelector('.error')")
        self.assertEqual(len(self.errors()), 1)
        self.tab.write("key")
        self.tab.press("Enter")
        self.tab.wait("document.getElementById('key-form').hidden")
        self.assertEqual(self.errors(), [])
        # Kept for this tab only.
        self.assertNotIn("key", self.tab.run("Object.values(localStorage).join()").replace("token", ""))

    def test_stop_ends_the_answer_here_and_at_the_server(self):
        for stop in [lambda: self.tab.click("#stop"), lambda: self.tab.press("Escape")]:
            self.ask("<say>again </say><forever>")
            self.tab.wait(f"{ANSWER}?.textContent.includes('again again again')")
            stop()
            text = self.answer()
            self.assertIn("again again", text)
            self.assertEqual(self.note(), "Stopped.")
            wait(lambda: metric(self.address, "num_requests_running") == 0, "the server to stop")
            self.assertEqual(self.answer(), text)
            self.assertTrue(self.tab.run("document.getElementById('stop').hidden"))
        self.tab.click("#clear")
        self.ask("<say>Goodbye</say>")
        self.assertEqual(self.answer(), "Goodbye")

    def test_the_load_of_the_server_is_live(self):
        self.ask("<say>again </say><forever>")
        self.tab.wait("document.getElementById('kv').value > 0")
        self.tab.wait("parseFloat(document.getElementById('speed').textContent) > 0")
        self.tab.press("Escape")

    def test_reasoning_is_folded(self):
        self.ask("<say><think>\nHm, <b>so</b>.\n</think>\n\nYes.</say>")
        self.assertEqual(self.answer(), "Yes.")
        thought = f"{ANSWER}.querySelector('details.thought')"
        self.assertFalse(self.tab.run(f"{thought}.open"))
        self.assertEqual(self.tab.run(f"{thought}.querySelector('.text').textContent"), "Hm, <b>so</b>.")
        self.ask("<say>No.</say>")
        self.assertEqual(self.answer(), "No.")
        self.assertTrue(self.tab.run(f"{thought}.hidden"))

    def test_what_the_model_says_is_text(self):
        evil = "<img src=x onerror=alert(1)><script>alert(2)</script><a href='javascript:alert(3)'>x</a> &amp;"
        self.ask(f"<say>{evil}\n```html\n{evil}\n```\nThat was it.</say>")
        self.assertEqual([line for line in self.answer().split("\n") if line], [evil, evil, "That was it."])
        self.assertEqual(self.tab.run(f"{ANSWER}.querySelector('pre code').textContent"), evil)
        self.assertEqual(self.tab.run("document.querySelectorAll('img, article script, article a').length"), 0)
        # Nor is it anything else after it was stored.
        self.open()
        self.assertEqual(self.tab.run(f"{ANSWER}.querySelector('pre code').textContent"), evil)
        self.assertEqual(self.tab.run("document.querySelectorAll('img, article script, article a').length"), 0)

    def test_errors_stand_where_they_happen(self):
        self.set("seed", "1e30")
        self.ask("<say>Hi</say>")
        self.tab.wait("!!document.querySelector('.error')")
        self.assertEqual(len(self.errors()), 1)
        self.assertIn("seed", self.errors()[0])
        self.set("seed", "")
        self.tab.click(".error button")
        self.assertEqual(self.answer(), "Hi")
        self.assertEqual(self.errors(), [])
        self.assertEqual(self.message(), "")

        # What can't be right is not sent.
        num_requests = len(self.tab.requests)
        self.set("max_tokens", -1)
        self.ask("<say>Ho</say>")
        self.tab.wait("document.getElementById('settings').open && document.activeElement.id === 'max_tokens'")
        self.assertNotIn(self.address + "/v1/chat/completions", self.tab.requests[num_requests:])

    def test_a_message_that_fails_is_taken_back(self):
        self.ask("<say>One</say>")
        self.assertEqual(self.answer(), "One")
        self.set("seed", "1e30")
        self.ask("<say>Bad</say>")
        self.tab.wait("!!document.querySelector('.error')")
        self.set("seed", "")
        # What was written is there to be changed, and is no part of what later messages bring along.
        self.assertEqual(self.message(), "<say>Bad</say>")
        self.assertEqual(self.tab.run("document.querySelectorAll('article').length"), 2)
        self.tab.run("document.getElementById('sampling').dispatchEvent(new Event('change'))")
        self.open()
        self.assertEqual(self.message(), "<say>Bad</say>")
        self.tab.run("document.getElementById('message').value = ''")
        self.ask("<say>Two</say>")
        self.assertEqual(self.answer(), "Two")
        roles = "JSON.parse(sessionStorage.getItem('nano-vllm-rs/conversation')).messages.map((m) => m.role)"
        self.assertEqual(self.tab.run(roles), ["user", "assistant", "user", "assistant"])
        self.assertNotIn("Bad", self.tab.run("Object.values(localStorage).join()"))

        # What an older page kept, or one that was closed before the answer came.
        self.tab.run("""
            kept = JSON.stringify({ messages: [
                { role: "user", content: "lost" }, { role: "user", content: "<say>Old</say>" }, { role: "assistant", content: "Old" },
                { role: "user", content: "unanswered" }] });
            sessionStorage.setItem('nano-vllm-rs/conversation', kept)""")
        self.open()
        self.assertEqual(self.tab.run("document.querySelectorAll('article').length"), 2)
        self.assertEqual(self.message(), "unanswered")

    def test_it_looks_right(self):
        os.makedirs(SCREENSHOTS, exist_ok=True)
        self.ask("<say>Call me Ishmael.</say> Write a sentence.")
        self.answer()
        code = "fn main() {\n    println!(\"" + "a long line that does not fit on a phone, " * 2 + "\");\n}"
        thought = "The user wants a programme.\nRust it is."
        self.ask(f"Now some code, please.\n<say><think>\n{thought}\n</think>\n\nHere it is:\n\n```rust\n{code}\n```\n\nRun it.</say>")
        self.answer()
        for name, width, height, scheme in [
            ("light", 1000, 800, "light"),
            ("dark", 1000, 800, "dark"),
            ("phone", 360, 640, "light"),
            ("phone-dark", 360, 640, "dark"),
        ]:
            self.tab.look(width, height, scheme)
            for is_open in [False, True]:
                self.tab.run(f"document.querySelectorAll('details').forEach((fold) => {{ fold.open = {str(is_open).lower()}; }})")
                log = "document.getElementById('log')"
                self.tab.run(f"{log}.scrollTop = {log}.scrollHeight")
                # Nothing sticks out, and there is room to read.
                self.assertLessEqual(self.tab.run("document.documentElement.scrollWidth"), width, name)
                self.assertLessEqual(self.tab.run(f"{log}.scrollWidth - {log}.clientWidth"), 0, name)
                self.assertLessEqual(self.tab.run("document.documentElement.scrollHeight"), height, name)
                self.assertGreater(self.tab.run(f"{log}.clientHeight"), 100, name)
                suffix = "-open" if is_open else ""
                self.tab.screenshot(os.path.join(SCREENSHOTS, f"{name}{suffix}.png"))
        dark = self.tab.run("getComputedStyle(document.body).backgroundColor")
        self.assertLess(max(map(int, re.findall(r"\d+", dark))), 64)


# What the tests have in common is no test.
del Page

if __name__ == "__main__":
    unittest.main(verbosity=2)
