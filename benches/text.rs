//! Text to token ids and back.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use nv_text::Tokenizer;

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
}

/// Turns `ids` into text one by one, as they are generated; returns the text's length.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> usize {
    let mut stream = tokenizer.stream(false);
    let pushed: usize = ids.iter().map(|&id| stream.push(id).len()).sum();
    pushed + stream.finish().len()
}
