//! Numbers that llguidance reads no JSON schema for: it compiles others in their place, which are exchanged behind it.

use std::collections::HashMap;
use std::mem;

use llguidance::derivre::RegexAst;
use llguidance::earley::lexerspec::LexerSpec;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Different kinds of such numbers in a schema at most.
const MAX_NUM: usize = 500;

/// What a placeholder begins with: no character, and nothing that schemas are written with.
pub(super) const MARK: char = '\u{10FFFE}';

/// What numbers of schemas are, and the strings in their place.
#[derive(Debug, Default)]
pub(super) struct Placeholders {
    expressions: Vec<RegexAst>,
    by_description: HashMap<String, usize>,
}

impl Placeholders {
    /// The definition of a number that is one of `expression`, of which `description` says what it is; and its name.
    pub(super) fn add(
        &mut self,
        description: String,
        expression: RegexAst,
    ) -> Result<(String, Value)> {
        let next = self.expressions.len();
        let index = *self.by_description.entry(description).or_insert(next);
        if index == next {
            self.expressions.push(expression);
        }
        if next >= MAX_NUM {
            let reason = format!("expected at most {MAX_NUM} different bounds of numbers");
            return Err(Error::grammar(reason));
        }
        Ok((format!("number_{index}"), json!({"const": text(index)})))
    }

    /// Has the lexer read the numbers where the placeholders are.
    pub(super) fn put_into(&self, lexer: &mut LexerSpec) -> Result<()> {
        for (index, expression) in self.expressions.iter().enumerate() {
            let placeholder = format!("\"{}\"", text(index));
            let mut places = (0..lexer.lexemes.len()).filter(|&place| {
                lexer.has_forced_bytes(&lexer.lexemes[place], placeholder.as_bytes())
            });
            let (Some(place), None) = (places.next(), places.next()) else {
                return Err(Error::grammar("a number with these bounds can't be in its place"));
            };
            let class = lexer.lexemes[place].class();
            // A lexeme knows its place; and one that is equal to another before it gets no own.
            let skip = lexer.lexemes[lexer.skip_id(class).as_usize()].clone();
            let mut lexemes = mem::replace(&mut lexer.lexemes, vec![skip; place]);
            let current_class = mem::replace(&mut lexer.current_class, class);
            let name = format!("number_{index}");
            let added = lexer.add_greedy_lexeme(name, expression.clone(), false, None, usize::MAX);
            added.map_err(|error| Error::grammar(error.to_string()))?;
            lexer.current_class = current_class;
            if let Some(number) = lexer.lexemes.pop() {
                lexemes[place] = number;
            }
            lexer.lexemes = lexemes;
        }
        Ok(())
    }
}

fn text(index: usize) -> String {
    format!("{MARK}{index}")
}
