//! `nv chat`, in a pipe and in a terminal.

use std::fs;
use std::io::{Read, Write};
use std::process::{Output, Stdio};

use nano_vllm_rs::text::{ChatMessage, Tokenizer};

use crate::demo;
use crate::nv::{command, model_with, stderr, stdout, str};

const GREEDY: [&str; 3] = ["chat", "--temperature", "0"];

/// What comes of lines that a chat reads from a pipe.
fn chat(options: &[&str], input: &str) -> Output {
    let mut child = command(&[&GREEDY, options].concat()).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What is answered in a chat in which nothing goes wrong.
#[track_caller]
fn answers(options: &[&str], input: &str) -> String {
    let output = chat(options, input);
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What `nv generate` goes on with after `prompt`.
fn generated(prompt: &str, options: &[&str]) -> String {
    let text = stdout(&[&["generate", "--temperature", "0", prompt], options].concat());
    text.strip_suffix('\n').unwrap().to_owned()
}

#[test]
fn the_model_knows_what_was_said() {
    let short = ["--max-tokens", "16"];
    let first = generated("In the beginning", &short);
    let second = generated(&format!("In the beginning{first}\nAnd God said"), &short);
    let expected = format!("{first}\n{second}\n");
    assert_eq!(answers(&short, "In the beginning\nAnd God said\n"), expected);

    let system = ["--max-tokens", "16", "--system", "Hear!"];
    let heard = generated("Hear!\nIn the beginning", &short) + "\n";
    assert_ne!(heard, format!("{first}\n"));
    assert_eq!(answers(&system, "In the beginning\n/quit\nnever read\n"), heard);
    let reset = "In the beginning\n/reset\nIn the beginning\n/system\n/reset\nIn the beginning\n";
    assert_eq!(answers(&system, reset), format!("{heard}{heard}{first}\n"));
}

#[test]
fn a_turn_costs_what_is_new_in_it() {
    let output = chat(&["--max-tokens", "40", "--stats"], "In the beginning\nAnd God said\n");
    let stderr = stderr(&output);
    let stats: Vec<_> = stderr.lines().filter(|line| line.starts_with("prompt: ")).collect();
    let [first, second] = stats[..] else { panic!("{stderr}") };
    let words =
        ["4 tokens, 0 cached; first token after ", "; generated: 40 tokens, ", " tok/s; cut at "];
    assert!(words.iter().all(|words| first.contains(words)), "{first}");
    // Two blocks of 16 tokens are full when the first turn ends.
    assert!(second.contains(" tokens, 32 cached; "), "{second}");
    assert!(
        stderr.contains("\n[cut after 40 tokens; /set max_tokens N allows more]\n"),
        "{stderr}"
    );
}

#[test]
fn a_mistake_is_told_and_the_session_goes_on() {
    let input =
        "/set temperature -1\n/set top_p 0.5\n/helo\n/save /no/such/folder/x\nIn the beginning\n";
    let output = chat(&["--max-tokens", "8"], input);
    let stderr = stderr(&output);
    for words in [
        "error: temperature: expected a finite number from 0, found -1\n",
        "\ntop_p               0.5\n",
        "error: there is no /helo: /help lists the commands",
        "error: cannot write /no/such/folder/x: No such file or directory",
    ] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    let answer = generated("In the beginning", &["--max-tokens", "8"]) + "\n";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), answer);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn settings_change_the_answer() {
    let short = answers(&["--max-tokens", "16"], "/set max_tokens 3\nIn the beginning\n");
    assert_eq!(short, generated("In the beginning", &["--max-tokens", "3"]) + "\n");
    let seeded = |seed| {
        let input = format!("/set temperature 1\n/set seed {seed}\nIn the beginning\n");
        answers(&["--max-tokens", "16"], &input)
    };
    assert_eq!(seeded(1), seeded(1));
    assert_ne!(seeded(1), seeded(2));
}

#[test]
fn messages_may_have_many_lines() {
    let short = ["--max-tokens", "8"];
    let expected = generated("In the\nbeginning", &short) + "\n";
    assert_eq!(answers(&short, "In the\\\nbeginning\n"), expected);
    assert_eq!(answers(&short, "\"\"\"\nIn the\nbeginning\n\"\"\"\n"), expected);
    assert_eq!(answers(&short, "In the\\\r\nbeginning"), expected);
}

#[test]
fn a_template_tells_reasoning_and_is_given_all_turns() {
    let template =
        "{% for message in messages %}{{ message.content }}, {% endfor %}{{ enable_thinking }}";
    let dir = model_with(&[("chat_template.jinja", Some(template))]);
    let options = ["--max-tokens", "8", str(dir.path())];
    let first = generated("Behold, False", &["--raw", "--max-tokens", "8"]);
    let second = format!("Behold, {first}, And, False");
    let second = generated(&second, &["--raw", "--max-tokens", "8"]);
    let input = "/set thinking off\nBehold\nAnd\n";
    assert_eq!(answers(&options, input), format!("{first}\n{second}\n"));

    let dir = model_with(&[("chat_template.jinja", Some("In the beginning<think>"))]);
    let options = ["--max-tokens", "8", str(dir.path())];
    let thought = answers(&options, "x\n");
    assert!(thought.starts_with("<think>\n") && thought.ends_with("\n</think>\n"), "{thought}");
}

#[test]
fn a_full_context_is_told() {
    let tokenizer = Tokenizer::from_file(demo().join("tokenizer.json")).unwrap();
    let long = |num_tokens| {
        let mut text = "And".to_owned();
        while tokenizer.encode(&text, true).unwrap().len() < num_tokens {
            text += " God";
        }
        text
    };
    let output = chat(&[], &format!("{}\n", long(1000)));
    let stderr = stderr(&output);
    assert!(
        stderr.contains("[the context of 1,024 tokens is full; /reset begins anew]"),
        "{stderr}"
    );

    let output = chat(&["--max-tokens", "8"], &format!("{}\nIn the beginning\n", long(1024)));
    let stderr = self::stderr(&output);
    let expected = "error: the conversation has 1,024 tokens, and the context of 1,024 tokens is full: \
                    /reset begins anew; the message is taken back\n";
    assert!(stderr.contains(expected), "{stderr}");
    let answer = generated("In the beginning", &["--max-tokens", "8"]) + "\n";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), answer);
}

#[test]
fn a_conversation_is_saved_as_the_openai_api_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a conversation.json");
    let input = format!("In the beginning\n/save {}\n", path.display());
    let answer = answers(&["--max-tokens", "8", "--system", "Hear!"], &input);
    let messages: Vec<ChatMessage> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let expected = [
        ChatMessage::new("system", "Hear!"),
        ChatMessage::new("user", "In the beginning"),
        ChatMessage::new("assistant", answer.strip_suffix('\n').unwrap()),
    ];
    assert_eq!(messages, expected);
}

#[test]
fn help_names_every_command() {
    let output = chat(&[], "/help\n");
    let stderr = stderr(&output);
    let names = ["/help", "/reset", "/system", "/set", "/save", "/quit", "Ctrl-C", "Ctrl-D"];
    assert!(names.iter().all(|name| stderr.contains(name)), "{stderr}");
    assert!(output.stdout.is_empty());
}

/// In a terminal, which `script` of util-linux brings.
#[cfg(target_os = "linux")]
mod terminal {
    use std::process::{Child, ChildStdin, Command};
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::Duration;

    use super::*;

    struct Terminal {
        child: Child,
        keys: ChildStdin,
        output: Receiver<Vec<u8>>,
        /// What has come and was not expected yet.
        text: String,
    }

    impl Terminal {
        fn start(options: &str) -> Self {
            // A shell that waits for its command would die of Ctrl-C itself.
            let chat = format!("exec {} chat {options}", env!("CARGO_BIN_EXE_nv"));
            let mut child = Command::new("script")
                .args(["--quiet", "--return", "--command", &chat, "/dev/null"])
                .env("SHELL", "/bin/sh")
                .env("TERM", "xterm")
                .env_remove("NO_COLOR")
                .env_remove("NV_ISA")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdout = child.stdout.take().unwrap();
            let (sender, output) = channel();
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(num_bytes @ 1..) = stdout.read(&mut bytes) {
                    if sender.send(bytes[..num_bytes].to_vec()).is_err() {
                        break;
                    }
                }
            });
            Self { keys: child.stdin.take().unwrap(), child, output, text: String::new() }
        }

        fn press(&mut self, keys: &str) {
            self.keys.write_all(keys.as_bytes()).unwrap();
            self.keys.flush().unwrap();
        }

        /// Waits until `words` have come; returns what came before them.
        #[track_caller]
        fn expect(&mut self, words: &str) -> String {
            loop {
                if let Some((before, rest)) = self.text.split_once(words) {
                    let before = before.to_owned();
                    self.text = rest.to_owned();
                    return before;
                }
                match self.output.recv_timeout(Duration::from_mins(1)) {
                    Ok(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                    Err(error) => panic!("no {words:?} in {:?}: {error}", self.text),
                }
            }
        }

        /// Waits until the process has ended by itself.
        fn end(mut self) -> Option<i32> {
            drop(self.keys);
            self.child.wait().unwrap().code()
        }
    }

    #[test]
    fn ctrl_c_stops_the_answer_and_keeps_the_session() {
        let mut terminal = Terminal::start("--temperature 1 --seed 1 --max-tokens 1000");
        terminal.expect("Ctrl-D ends.");
        terminal.expect("> ");
        for _ in 0..2 {
            terminal.press("In the beginning\r");
            terminal.expect("In the beginning");
            // The answer has begun.
            terminal.expect(" the ");
            terminal.press("\x03");
            terminal.expect("[stopped]");
            terminal.expect("> ");
        }
        // Between answers there is nothing to stop.
        terminal.press("half a line\x03");
        terminal.expect("Ctrl-D or /quit ends.");
        terminal.expect("> ");
        terminal.press("/set\r");
        terminal.expect("temperature         1");
        terminal.expect("> ");
        terminal.press("\x04");
        assert_eq!(terminal.end(), Some(0));
    }

    /// As a terminal without bracketed paste sends what is pasted.
    #[test]
    fn lines_that_come_at_once_are_messages_in_turn() {
        let mut terminal = Terminal::start("--temperature 0 --max-tokens 4");
        terminal.expect("> ");
        let many: Vec<_> = (1..=300).map(|i| format!("/set top_k {i}\r")).collect();
        let many = many.concat();
        terminal.press(&format!("/set top_k 1000\rIn the beginning\r{many}/set top_p 0.5\r"));
        // Without the line's end: before it the terminal may echo what is pressed meanwhile. A line that was lost would still
        // show, for then a number is found in a longer one, and those behind that run out.
        for i in std::iter::once(1000).chain(1..=300) {
            terminal.expect(&format!("top_k               {i}"));
        }
        terminal.expect("top_p               0.5");
        terminal.press("\x04");
        assert_eq!(terminal.end(), Some(0));
    }

    #[test]
    fn lines_are_edited_and_remembered() {
        let mut terminal = Terminal::start("--temperature 0 --max-tokens 4");
        terminal.expect("> ");
        // Left, left, and a letter between.
        terminal.press("/st top_k 4\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D\x1b[De\r");
        terminal.expect("top_k               4");
        terminal.expect("> ");
        // The line before once more, and a digit after it.
        terminal.press("\x1b[A2\r");
        terminal.expect("top_k               42");
        terminal.expect("> ");
        // Two lines in one message.
        terminal.press("/set \\\rtop_k 7\r");
        terminal.expect("top_k               7");
        terminal.expect("> ");
        terminal.press("/quit\r");
        assert_eq!(terminal.end(), Some(0));
    }
}
