//! Generated tokens on their way into a stream's chunks: ids to text, stop strings, reasoning and tool calls.

use std::sync::OnceLock;

use nv_testing::scripted_tokenizer;
use nv_text::{ChatAnswer, ChatParser, Reasoning, StopStrings, Tokenizer, ToolCalls};

use super::Choices;

/// The text of any tokens comes out the same in pieces as it does whole, at each of the three stages.
///
/// The first byte has the settings; the second says how many stop strings follow, each as its length and its bytes. The
/// rest are token ids, bytes mostly: 255 makes an id beyond them of the byte after it.
pub fn detokeniser(data: &[u8]) {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(scripted_tokenizer);
    let mut choices = Choices(data);
    let settings = choices.below(u8::MAX);
    let (skip_special_tokens, include_stop) = (settings & 1 != 0, settings & 2 != 0);
    let reasoning =
        [Reasoning::Off, Reasoning::Optional, Reasoning::Opened][settings as usize / 4 % 3];
    let tool_calls = [ToolCalls::Off, ToolCalls::On][settings as usize / 16 % 2];
    let stop: Vec<String> = (0..choices.below(4))
        .map(|_| {
            let len = choices.below(8);
            String::from_utf8_lossy(choices.take(len.into())).into_owned()
        })
        .collect();
    let Ok(mut check) = StopStrings::new(&stop, include_stop) else {
        return assert!(stop.iter().any(String::is_empty), "{stop:?} is refused");
    };
    let mut ids = Vec::new();
    while let Some(byte) = choices.next() {
        ids.push(if byte == u8::MAX {
            256 + u32::from(choices.below(u8::MAX))
        } else {
            byte.into()
        });
    }

    let mut stream = tokenizer.stream(skip_special_tokens);
    let mut parser = ChatParser::new(reasoning, tool_calls);
    let (mut text, mut checked, mut answer) = (String::new(), String::new(), ChatAnswer::default());
    let mut push = |piece: &str, check: &mut StopStrings| {
        text += piece;
        let piece = check.push(piece);
        checked += piece.text;
        answer.extend(parser.push(piece.text));
    };
    for id in ids.iter().copied() {
        push(stream.push(id), &mut check);
    }
    push(&stream.finish(), &mut check);
    let held = check.finish().text;
    checked += held;
    answer.extend(parser.push(held));
    answer.extend(parser.finish());

    assert_eq!(text, tokenizer.decode(&ids, skip_special_tokens));
    assert_eq!(checked, up_to_stop(&text, &stop, include_stop));
    assert_eq!(answer, ChatParser::parse(&checked, reasoning, tool_calls));
}

/// The text up to the stop string that ends first in it, of several that end there the longest.
fn up_to_stop<'a>(text: &'a str, stop: &[String], include_stop: bool) -> &'a str {
    let ends = text.char_indices().map(|(at, char)| at + char.len_utf8());
    let found = ends.filter_map(|end| {
        let here = stop.iter().filter(|string| text[..end].ends_with(string.as_str()));
        here.map(String::len).max().map(|len| (end, len))
    });
    match found.min() {
        None => text,
        Some((end, _)) if include_stop => &text[..end],
        Some((end, len)) => &text[..end - len],
    }
}
