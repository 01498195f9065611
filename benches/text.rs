//! Conversations to text, text to token ids and back.

use std::fs;
use std::hint::black_box;

use criterion::{Criterion, Throughput};
use nv_text::{ChatMessage, ChatOptions, ChatTemplate, Tokenizer};

use crate::demo;

const TEXT: &str = "In the beginning was the word, and the word went up and down the coast: \
    “How now,” said the naïve old captain, “shall we sail at 7:30, or wait for 1,000 more men?”\n";

pub(crate) fn benches(criterion: &mut Criterion) {
    let path = demo("tokenizer.json");
    criterion.bench_function("tokenizer/load", |b| {
        b.iter(|| Tokenizer::from_file(black_box(&path)).unwrap());
    });

    let tokenizer = Tokenizer::from_file(&path).unwrap();
    let text = TEXT.repeat(20);
    let ids = tokenizer.encode(&text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false), text);
    assert_eq!(stream(&tokenizer, &ids), text.len());

    let mut group = criterion.benchmark_group("tokenizer");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("encode", |b| {
        b.iter(|| tokenizer.encode(black_box(&text), false).unwrap());
    });
    group.throughput(Throughput::Elements(ids.len() as u64));
    group.bench_function("decode", |b| b.iter(|| tokenizer.decode(black_box(&ids), false)));
    group.bench_function("stream", |b| b.iter(|| stream(&tokenizer, black_box(&ids))));
    group.finish();
    template(criterion);
}

/// Qwen3's own template, of which each answer renders the whole conversation.
fn template(criterion: &mut Criterion) {
    let source = "crates/nv-text/tests/chat_template/qwen3.jinja";
    let source = fs::read_to_string(xtask::root().join(source)).unwrap();
    let template = ChatTemplate::new(&source).unwrap();
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let mut group = criterion.benchmark_group("chat_template/render");
    for num_messages in [1, 11, 101] {
        let message = |i| ChatMessage::new(if i % 2 == 0 { "user" } else { "assistant" }, TEXT);
        let messages: Vec<ChatMessage> = (0..num_messages).map(message).collect();
        let text = template.render(&messages, &options).unwrap();
        assert_eq!(text.matches("<|im_start|>").count(), num_messages + 1);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(format!("{num_messages} messages"), |b| {
            b.iter(|| template.render(black_box(&messages), &options).unwrap());
        });
    }
    group.finish();
}

/// Turns `ids` into text one by one, as they are generated; returns the text's length.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> usize {
    let mut stream = tokenizer.stream(false);
    let pushed: usize = ids.iter().map(|&id| stream.push(id).len()).sum();
    pushed + stream.finish().len()
}
